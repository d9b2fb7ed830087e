"""How programs name the files of an adapter. No torch."""

PEFT_NAME = "adapter_model.safetensors"
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
KOHYA_NAME = "pytorch_lora_weights_kohya.safetensors"  # the same adapter by the key names of other programs
PICKLED = ("adapter_model.bin", "pytorch_lora_weights.bin")  # what peft and diffusers wrote before safetensors
NAMES = (PEFT_NAME, DIFFUSERS_NAME, *PICKLED)
NO_ADAPTERS = ("scheduler", "optimizer", "checkpoint")  # in names of files beside one, by diffusers' rule
