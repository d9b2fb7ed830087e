"""LoRA adapters: put into a network, switched, mixed, saved, loaded.

files      Adapters on disk: PEFT folders and diffusers LoRA files, read into the same thing
inject     LoRA through peft: injected into a network in place, switched, saved, mixed, merged for export
paths      Where a saved adapter lies
per_image  Layers with a weight for each image, so that the gradients of images in one batch come apart
"""
