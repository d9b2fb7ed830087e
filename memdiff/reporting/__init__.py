"""HTML pages about runs, and the card of a saved model.

card         The card of a saved model: README.md with the metadata that the hub reads, and its curves
comparison   Several runs side by side: their figures, their curves in one plot each, their images, their recipes
curves       The reward over the rounds as a picture of its own, for the card of a model
diagnostics  Health of the optimization, variety of the images, and whatever else a method reports
folder       What a run folder holds, read with distrust: a missing or broken optional file becomes a note
grid         Grids of images, and the animation of a grid over the rounds
headline     The head of the report: a title, one sentence, the figures that count
html         `report.html`: one self-contained page about a run
loading      How a saved model is loaded again: the lines that stand on its card
page         Pages of this house's look: one file without scripts that opens from a file://
panel        A plot together with its words
pictures     Sample grids as `data:` addresses, re-encoded so that only pixels reach the page
plots        The report's plots, each an SVG without a single string of the run in it
quantities   What the numbers of a row are called on a page, and what one should see in their curve
rows         Reading `metrics.jsonl`: one JSON object a line, one line a round
samples      Sample grids in the report: whole ones, the animation, and single images before and after
sections     Rewards, shares, time and memory of a run as plots: which columns, in which units
tables       The report's tables: phases, alarms, events, the judge's counts, the plan beside what was measured
words        Words that the report, the card and the comparison share
"""
