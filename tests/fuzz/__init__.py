"""Files of strangers, damaged and hostile, through the real commands: `python -m tests.fuzz`; docs/hostile_input.md.

hostile          What hostile files hold: values, names, payloads, pickles that leave a mark where they are run
json_mutants     One change somewhere in a JSON or YAML document
weights          Weight files that are not what their name says
mutants          One change to one file of a folder
places           The folders that are changed: a run, models, adapters, rewards, prompts, images
surfaces         Which files are changed, and which command reads them
trial            One command in a fork of this process, under an audit hook: how it ended, what it touched
campaign         Mutants of a surface, one after another: number N of a seed is always the same
recipe_mistakes  Makers of recipes with one mistake each, of fifteen kinds, and of changed recipes that are right
recipes          Recipes with mistakes, and a table of how they were refused
told             Seconds until each kind of mistake in a run is told, from the command line's start
payloads         Texts that would be scripts, forms, frames or styles in a page that does not escape them
pages            Reports and comparison pages that hold payloads, in a browser where there is one
"""
