"""One HTML file about a run.

card         The card of a saved model: README.md with the metadata that the hub reads, and its curves
curves       The reward over the rounds as a picture of its own, for the card of a model
diagnostics  Health of the optimization, and whatever else a method reports
folder       What a run folder holds, read with distrust: a missing or broken optional file becomes a note
grid         Grids of images, and the animation of a grid over the rounds
html         `report.html`: one self-contained page about a run, without scripts, that opens from a file
loading      How a saved model is loaded again: the lines that stand on its card
panel        A plot together with its words
pictures     Sample grids as `data:` addresses, re-encoded so that only pixels reach the page
plots        The report's plots, each an SVG without a single string of the run in it
rows         Reading `metrics.jsonl`: one JSON object a line, one line a round
sections     Rewards, shares, time and memory of a run as plots: which columns, in which units
"""
