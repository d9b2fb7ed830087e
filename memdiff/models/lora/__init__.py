"""LoRA adapters: put into a network, switched, mixed, saved, loaded.

files      Adapters on disk: PEFT folders, diffusers' and kohya's LoRA files, read into the same thing
formats    LoRA files of other programs: their key names as the network's own, by diffusers' converters
hub        Adapters on the hub: which file of a repository, and where it lies once it is fetched
inject     LoRA through peft: injected into a network in place, switched, saved, mixed, merged for export
names      How programs name the files of an adapter
paths      Where a saved adapter lies: here, or on the hub
per_image  Layers with a weight for each image, so that the gradients of images in one batch come apart
"""
