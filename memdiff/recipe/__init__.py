"""The recipe: its sections put together, read from a file, and what its paths hold.

contents       What lies behind the paths of a recipe
model_options  From a recipe and its knobs to how its model is run: the same for a run and for its plan
prompts        Recipe section `prompts`: which texts images are made from, and which image gets which
reading        Reads a recipe file: YAML in, a checked `Recipe` out, every mistake as one line
recipe         The recipe: one YAML file, the sum of the rooms' own sections
"""
