"""Where compiled operators lie: in a checkout's own cache, else where torch puts them. No torch."""

import os
from pathlib import Path


def operator_folder() -> str | None:
    """TORCH_EXTENSIONS_DIR as a run has it; None where torch chooses."""
    root = Path(__file__).resolve().parents[2]
    own = str(root / ".cache" / "torch_extensions") if (root / "pyproject.toml").is_file() else None
    return os.environ.get("TORCH_EXTENSIONS_DIR") or own
