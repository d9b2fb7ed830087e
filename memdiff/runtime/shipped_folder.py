"""Folders of data that ship with memdiff: beside the package in a checkout, inside it where installed. No torch."""

from pathlib import Path


def shipped_folder(in_checkout: str) -> Path:
    """`ds_configs` or `launch/recipes` of a checkout, or the copy of its last part inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / in_checkout
    return beside if beside.is_dir() else package / beside.name
