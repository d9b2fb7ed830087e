"""memdiff push: a run's model to the hub.

push  The model of a run, with its card, as a repository of the hub; said before it is done
"""
