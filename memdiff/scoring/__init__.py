"""`memdiff score`: rewards of image files.

images   Rewards of images that lie on disk: the core of `memdiff score`
request  The rewards that `memdiff score` was asked for, checked
score    Scores image files with rewards and shows what came out: the work of `memdiff score`
"""
