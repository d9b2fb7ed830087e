"""What pages hold that comes from the code: made when they are built, so that it can't be old.

hooks        mkdocs calls it: the pages that are generated whole, and what stands in the place of a marker
recipe_keys  the page of all keys of a recipe, from its JSON Schema
messages     the lines that users' mistakes end with, read from the source, and the groups of the troubleshooting page
commands     the blocks of the pages that are commands, for the test that runs them
"""
