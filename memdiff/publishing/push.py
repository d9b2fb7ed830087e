"""The model of a run, with its card, as a repository of the hub; said before it is done. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdiff.errors import ConfigError, MemdiffError
from memdiff.reporting.card import CARD
from memdiff.reporting.loading import PLACE
from memdiff.training.run_folder import RunFolder
from memdiff.training.saved_model import describe_model

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Upload:
    """What is to go where."""

    repo: str
    folder: Path
    files: tuple[Path, ...]  # in the folder
    private: bool

    def lines(self) -> list[str]:
        """What a person reads before it is done."""
        sizes = [file.stat().st_size for file in self.files]
        names = [str(file.relative_to(self.folder)) for file in self.files]
        width = max(map(len, names))
        kind = "private" if self.private else "public"
        rows = [f"  {name:<{width}}  {size_words(size):>9}" for name, size in zip(names, sizes, strict=True)]
        return [
            f"{len(names)} files, {size_words(sum(sizes))}, from {self.folder}",
            *rows,
            f"to the model repository {self.repo}, {kind} where it is new",
        ]


def prepare_upload(run: Path, repo: str, *, best: bool, public: bool) -> Upload:
    """The files of a run's model. Writes its card where it has none. Raises ConfigError."""
    folder = RunFolder(run)
    if not folder.exists():
        raise ConfigError(f"{run} is no run folder; give one that `memdiff train` made")
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise ConfigError(f"REPO must be owner/name in letters, digits and ._-, got {repo:.100}")
    model = folder.best_model if best else folder.model
    files = _files(model)
    if not files:
        raise ConfigError(f"{run} holds no {model.name} yet; it is written when the run ends")
    if not (model / CARD).is_file():
        status = folder.status()
        number = status.get("round", 0)
        rows, environment = folder.rows(), status.get("environment") or {}
        describe_model(model, folder.recipe(), rows, environment, trained_round=number)
        files = _files(model)
    return Upload(repo, model, files, private=not public)


def _files(folder: Path) -> tuple[Path, ...]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return tuple(sorted(file for file in files if not any(part.startswith(".") for part in file.parts[-2:])))


def push(upload: Upload) -> str:
    """Creates the repository where it is not there, and adds the files in one commit. Returns the commit's address.

    Raises MemdiffError, in the hub's words, where it refuses or can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    operations: list[Any] = []
    for file in upload.files:
        name = file.relative_to(upload.folder).as_posix()
        content: Any = str(file)
        if name == CARD:
            content = file.read_text(encoding="utf-8").replace(PLACE, upload.repo).encode()
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    api = HfApi()
    try:
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        commit = api.create_commit(upload.repo, operations, commit_message="Model and card of a memdiff run")
    except LocalTokenNotFoundError:
        raise ConfigError("the hub does not know you here; hf auth login, or set HF_TOKEN") from None
    except Exception as error:  # the client's own, its transport's, and what it makes of an answer that it misreads
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = "; hf auth login with a token that may write" if _status(error) in (401, 403) else ""
        raise MemdiffError(f"the hub did not take {upload.repo}: {first.strip()[:300]}{advice}") from None
    return str(commit.commit_url)


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def size_words(size: int) -> str:
    """`3.2 MB`: units of 1000, as the hub shows them."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"
