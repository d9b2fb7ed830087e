"""Adapters on the hub: which file of a repository, and where it lies once it is fetched. No torch."""

from pathlib import Path
from typing import NoReturn

from memdiff.errors import ConfigError
from memdiff.models.lora.names import NAMES, NO_ADAPTERS

SECONDS = 5.0  # for the hub's answer
CONFIG = "adapter_config.json"


def fetch_adapter(repository: str, file: str | None) -> Path:
    """A repository's adapter in the hub's cache, fetched where it is not there yet.

    Raises ConfigError in one line where there is none, no telling which of several, or no hub to ask.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = _files_of(repository)
    chosen = file or _only_adapter(repository, names)
    if chosen not in names:
        raise ConfigError(f"{repository} holds no {chosen}; its adapters are {_shown(_adapters(names))}")
    try:
        if CONFIG in names:  # an alpha stands in it
            hf_hub_download(repository, CONFIG)
        return Path(hf_hub_download(repository, chosen))
    except (OSError, ValueError, LocalEntryNotFoundError) as error:
        _not_at_hand(repository, error)


def _files_of(repository: str) -> list[str]:
    """Names of the repository's files; of those in the cache where the hub can't be asked."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    asked: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            return [file.rfilename for file in HfApi().model_info(repository, timeout=SECONDS).siblings or ()]
        except GatedRepoError as error:
            raise ConfigError(f"{repository}: the hub wants its terms accepted; then hf auth login") from error
        except RepositoryNotFoundError as error:
            raise ConfigError(
                f"no such adapter file or folder: {repository}, and the hub has no repository of that name"
            ) from error
        except Exception as error:  # no network, or a mirror that answers otherwise: the cache may have it
            asked = error
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    try:
        folder = cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError as error:
        _not_at_hand(repository, asked or error)
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def _adapters(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors") and not any(word in name for word in NO_ADAPTERS)]


def _only_adapter(repository: str, names: list[str]) -> str:
    usual = next((name for name in NAMES if name in names), None)
    if usual is not None:
        return usual
    adapters = _adapters(names)
    if len(adapters) == 1 and "model_index.json" not in names:
        return adapters[0]
    if not adapters:
        raise ConfigError(f"{repository} holds no LoRA (.safetensors); its files are {_shown(names)}")
    raise ConfigError(
        f"{repository} holds {len(adapters)} .safetensors files; name one of them, such as {repository}/{adapters[0]}"
    )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _not_at_hand(repository: str, error: Exception) -> NoReturn:
    raise ConfigError(
        f"no such adapter file or folder: {repository}, and as a hub id it is not in the cache and can't be fetched "
        f"({type(error).__name__}); fetch it first: hf download {repository}"
    ) from None
