"""Where a saved adapter lies: here, or on the hub. No torch."""

import re
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.models.lora.hub import fetch_adapter
from memdiff.models.lora.names import DIFFUSERS_NAME, NAMES, NO_ADAPTERS, PEFT_NAME

FOLDERS = (".", "adapter", "model", "model/adapter")  # inside a PEFT folder, a pipeline, a run
SUFFIXES = (".safetensors", ".bin", ".pt")
HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*(/(?!.*\.\.)[\w./ +()-]+\.(safetensors|bin|pt))?", re.ASCII)


def find_adapter(path: Path) -> Path:
    """The file of a PEFT folder, a LoRA file or folder under any name, a run folder, or a hub id, which is fetched.

    A hub id is `owner/name`, or `owner/name/FILE` where there are several. Raises ConfigError where there is none, or
    no telling which.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"{path} is no adapter; give a .safetensors file, or a folder that holds one")
        return path
    for folder in FOLDERS:
        for name in NAMES:
            if (path / folder / name).is_file():
                return path / folder / name
    if not path.exists() and on_hub(path):
        return fetch_adapter(*_repository_and_file(path))
    if not path.exists():
        raise ConfigError(f"no such adapter file or folder: {path}")
    return _only_one(path)


def on_hub(path: Path) -> bool:
    """Whether the text could be a hub id, or a file of one."""
    return HUB.fullmatch(str(path)) is not None


def _repository_and_file(path: Path) -> tuple[str, str | None]:
    owner, name, *inside = str(path).split("/")
    return f"{owner}/{name}", "/".join(inside) or None


def _only_one(folder: Path) -> Path:
    """The one safetensors file of a folder, as diffusers takes it; several are for a person to choose from."""
    weights = filter(Path.is_file, folder.glob("*.safetensors"))
    files = sorted(file for file in weights if not any(word in file.name for word in NO_ADAPTERS))
    if len(files) == 1 and not (folder / "model_index.json").is_file():
        return files[0]
    if len(files) > 1:
        raise ConfigError(f"{folder} holds {len(files)} .safetensors files; name one of them, such as {files[0]}")
    raise ConfigError(
        f"{folder} holds no {PEFT_NAME} and no {DIFFUSERS_NAME}; give a run with LoRA, or what peft saved"
    )
