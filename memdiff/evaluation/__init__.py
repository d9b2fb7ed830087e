"""`memdiff eval`: several sources side by side, from the same noise and texts.

distances    Distances between sets of features: FID and KID through torchmetrics, and how far a set's images lie apart
evaluate     Sources side by side: sampled, scored, compared. The work of `memdiff eval`
features     Features of image files, computed once for FID, KID and diversity alike
geneval      GenEval's checks of objects, counts and positions, through the detection reward
inception    The Inception network of FID and KID, its weights in their published layout
intervals    Means with their 95 % intervals, shares with Wilson's, and differences of pairs
prompt_sets  Prompt sets in their published formats: DrawBench, HPDv2, PartiPrompts, GenEval
request      What `memdiff eval` was asked for, checked: the sources, their images and texts, and the metrics
show         What came out, shown: a table on the screen, eval.json, a page with the images side by side
"""
