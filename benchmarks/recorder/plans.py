"""`memdiff plan` of every recipe that ships, as JSON, for one T4 and for four. The large ones take minutes each.

python -m benchmarks.recorder.plans FOLDER [RECIPE ...]     # writes FOLDER/RECIPE.json
"""

import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from benchmarks.recorder.cases import PLANNED, RECIPES
from memdiff.cli import main as memdiff

CARDS = (1, 4)


def plan(name: str, cards: int) -> dict[str, Any]:
    """What `memdiff plan NAME.yaml --gpu t4 --gpus CARDS --json` prints."""
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        memdiff(
            ["plan", str(RECIPES / f"{name}.yaml"), "--gpu", "t4", "--gpus", str(cards), "--host-gib", "1000", "--json"]
        )
    return json.loads(said.getvalue())


def main(words: Sequence[str]) -> None:
    """One file a recipe, as soon as it is planned."""
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in words[1:] or PLANNED:
        plans = {f"{cards} x t4": plan(name, cards) for cards in CARDS}
        (folder / f"{name}.json").write_text(json.dumps(plans, indent=1) + "\n")
        print(f"planned {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
