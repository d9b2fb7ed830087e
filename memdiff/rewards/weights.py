"""Weight files of reward models: found, and read without running anything in them."""

import hashlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memdiff.errors import ConfigError
from memdiff.runtime.hub import why_unreachable
from memdiff.runtime.state_dicts import read_pickle, read_safetensors, refuse_repeated_numbers

PICKLED = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model")  # keys under which training scripts store the tensors, tried in this order

_log = logging.getLogger(__name__)


def find_weights(source: str, filename: str, revision: str | None = None) -> Path:
    """The file `filename` of `source`: a hub id, a folder that holds it, or the file itself (under any name).

    A hub file already in the cache is taken as it lies there, without asking the network; pin `revision` to choose one.
    Raises ConfigError in one line that names the id, the folder looked in and the command that fetches the file.
    """
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError):  # a name that is too long, the home of nobody
        raise ConfigError(f"{source[:80]!r} can't be the name of a file, a folder or a hub id") from None
    if is_file:
        return path
    if is_folder:
        if (path / filename).is_file():
            return path / filename
        raise ConfigError(f"{filename} is needed in the folder {path}, and is not there; put it there or give a hub id")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ConfigError(
            f"no such file or folder: {source}; {filename}, a folder that holds it, or a hub id is needed"
        )
    return _from_hub(source, filename, revision)


def _from_hub(repo_id: str, filename: str, revision: str | None) -> Path:
    try:
        cached = try_to_load_from_cache(repo_id, filename, revision=revision)
        reason = "" if isinstance(cached, str) or constants.HF_HUB_OFFLINE else why_unreachable()
        if not reason:
            return Path(cached if isinstance(cached, str) else hf_hub_download(repo_id, filename, revision=revision))
    except HFValidationError:
        raise ConfigError(
            f"{repo_id[:80]!r} is neither a file, nor a folder, nor a hub id of the form owner/name"
        ) from None
    except RevisionNotFoundError:
        reason = f"no revision {revision}"
    except RepositoryNotFoundError:
        reason = "no such model, or it is private"
    except FileNotFoundError:
        reason = "not reachable from here"  # the library's class for this is also an EntryNotFoundError
    except EntryNotFoundError:
        reason = f"the model has no file {filename}"
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    pinned = f" --revision {revision}" if revision else ""
    raise ConfigError(
        f"{filename} of {repo_id} is not in {constants.HF_HUB_CACHE}, and the hub did not give it ({reason}); fetch it "
        f"where there is a network: hf download {repo_id} {filename}{pinned}"
    )


def load_weights(path: Path, *, cache: Path | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name, on the host.

    `.safetensors` is read as it is. `.pt`, `.pth` and `.bin` are pickles: read once with `weights_only=True`, and kept
    as safetensors in `cache` (None: memdiff's folder under XDG_CACHE_HOME or ~/.cache) under the sha256 of the source,
    which is computed and compared with the recorded one every time. Raises ConfigError in one line for a file that is
    damaged, holds anything but tensors, or wants to run code.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in PICKLED:
        raise ConfigError(f"{path}: weights must be .safetensors or one of {', '.join(PICKLED)}, got {path.suffix!r}")
    digest = sha256(path)
    converted = (cache or default_cache()) / "weights" / f"{digest}.safetensors"
    if _is_conversion_of(converted, digest):
        return read_safetensors(converted)
    tensors = _read_pickle(path)
    try:
        _write_safetensors(tensors, converted, {"source": path.name, "source_sha256": digest})
    except OSError as error:
        _log.warning(
            "%s could not be kept as safetensors in %s (%s); it is read anew each time", path, converted, error
        )
        return tensors
    del tensors  # the copy on disk is mapped into memory instead: one of the two is enough
    return read_safetensors(converted)


def default_cache() -> Path:
    """memdiff's folder in the user's cache; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memdiff"


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises ConfigError where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None


def _is_conversion_of(converted: Path, digest: str) -> bool:
    """Whether the file is there, whole, and records that digest; a damaged one is made again."""
    if not converted.is_file():
        return False
    try:
        with safe_open(converted, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256") == digest
    except (SafetensorError, OSError):
        return False


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = read_pickle(path)
    except Exception as error:  # a damaged or hostile pickle ends in whatever exception its bytes lead to
        raise ConfigError(
            f"{path} was not loaded, and nothing in it was run: it is damaged, or holds more than tensors "
            f"({_one_line(error)}); fetch it again from a source you trust"
        ) from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{path} must hold tensors by name, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ConfigError(f"{path} must hold dense tensors by name, got {type(value).__name__} under {name!r:.80}")
    refuse_repeated_numbers(path, content.values())
    return {name: value.detach() for name, value in content.items()}


def _write_safetensors(tensors: Mapping[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Whole or not at all: several ranks may write the same file at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    storages = {name: tensor.untyped_storage().data_ptr() for name, tensor in tensors.items()}
    users = Counter(storages.values())
    # The format has no views: tensors that share their memory, or part of it, are stored one by one.
    stored = {
        name: tensor.contiguous() if users[storages[name]] == 1 else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
        partial = Path(folder) / target.name
        try:
            save_file(stored, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(_one_line(error)) from error
        partial.replace(target)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
