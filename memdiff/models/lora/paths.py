"""Where a saved adapter lies. No torch."""

from pathlib import Path

from memdiff.errors import ConfigError

PEFT_NAME = "adapter_model.safetensors"
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
FOLDERS = (".", "adapter", "model", "model/adapter")  # inside a PEFT folder, a pipeline, a run


def find_adapter(path: Path) -> Path:
    """The safetensors file of a PEFT folder, a diffusers LoRA file or folder, or a run folder.

    Raises ConfigError where there is none.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ConfigError(f"{path} is no adapter; give a .safetensors file, or a folder that holds one")
        return path
    for folder in FOLDERS:
        for name in (PEFT_NAME, DIFFUSERS_NAME):
            if (path / folder / name).is_file():
                return path / folder / name
    if not path.exists():
        raise ConfigError(f"no such adapter file or folder: {path}")
    raise ConfigError(f"{path} holds no {PEFT_NAME} and no {DIFFUSERS_NAME}; give a run with LoRA, or what peft saved")
