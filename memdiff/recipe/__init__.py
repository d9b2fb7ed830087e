"""The recipe: its sections put together, read from a file, and what its paths hold.

contents       What lies behind the paths of a recipe
init           `memdiff init`: a recipe with comments from a few words: which model, which reward, on which card
mistakes       What pydantic finds wrong with a section, as lines for a person: dotted key, what was got, what to do
model_options  From a recipe and its knobs to how its model is run: the same for a run and for its plan
prompt_files   Files of prompts: text, CSV and TSV, JSON, JSONL, Parquet
prompts        Recipe section `prompts`: which texts images are made from, and which image gets which
reading        Reads a recipe file: YAML in, a checked `Recipe` out, every mistake as one line
recipe         The recipe: one YAML file, the sum of the rooms' own sections
schema         The JSON Schema of a recipe, for editors and for the documentation
shipped        The recipes that ship: found by name wherever memdiff is installed, and what each is about
synonyms       Names that TRL's, diffusers', DDPO's and AlignProp's scripts use, and what a recipe calls them
"""
