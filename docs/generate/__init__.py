"""What pages hold that comes from the code, so that it can't be old: made when they are built, or held by a test.

hooks        mkdocs calls it: what stands in the place of a marker
recipe_keys  the page of all keys of a recipe, docs/recipe.md, from its JSON Schema
messages     the lines that users' mistakes end with, read from the source, and the groups of the troubleshooting page
commands     the blocks of the pages that are commands, for the test that runs them
"""
