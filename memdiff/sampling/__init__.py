"""`memdiff sample`: images from a run, a folder or a hub id.

processes  Sampling over several processes, one a GPU: they need no word from each other
request    What `memdiff sample` was asked for, checked
sample     Sampling on one device: this process's block of the images, each into a PNG of its own. No DeepSpeed
source     What lies at the SOURCE of `memdiff sample`: a model, its adapter, and how it was sampled in training
"""
