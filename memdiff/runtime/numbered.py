"""Files and folders that memdiff numbers: `round_000003`, `image_000012.png`, and no other name. No torch."""

import re
from pathlib import Path


def name_of(prefix: str, number: int, suffix: str = "") -> str:
    """Six digits, or more where six are too few."""
    return f"{prefix}{number:06d}{suffix}"


def number_of(path: Path, prefix: str, suffix: str = "") -> int | None:
    """The number in a name that `name_of` gives; None for any other name."""
    match = re.fullmatch(re.escape(prefix) + r"([0-9]{6,})" + re.escape(suffix), path.name)
    return int(match[1]) if match and path.name == name_of(prefix, int(match[1]), suffix) else None


def numbered(folder: Path, prefix: str, suffix: str = "") -> dict[int, Path]:
    """What lies in `folder` under a name that `name_of` gives, by number, in order; links are left out."""
    paths_by_number = {}
    for path in folder.glob(f"{prefix}*{suffix}"):
        number = number_of(path, prefix, suffix)
        if number is not None and not path.is_symlink():
            paths_by_number[number] = path
    return {number: paths_by_number[number] for number in sorted(paths_by_number)}
