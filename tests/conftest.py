"""Fixtures that several files use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.operators import build_operators

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MEMDIFF_PLAN_CACHE"] = ""  # what a test plans it measures itself
# One ninja for all: another one's build log makes DeepSpeed's operators be built anew.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Before the first test, and before pytest-xdist starts its workers: none of them finds operators to build."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    writer = session.config.get_terminal_writer()

    def say(words: str) -> None:
        writer.line(words)
        writer.flush()

    build_operators(say)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """Tiny tensors gain nothing from more threads, and test processes run side by side."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> Iterator[torch.Generator]:
    yield torch.Generator().manual_seed(0)
