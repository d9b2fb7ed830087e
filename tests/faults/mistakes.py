"""R21: what DeepSpeed's own launcher is told wrongly, as `memdiff train` would not: the ranks say so in a line."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

from memdiff.errors import LAST_LINE
from tests.faults.results import PATIENCE, Result, attempt
from tests.faults.runs import Run, write_recipe


def under_the_bare_launcher(folder: Path) -> Iterator[Result]:
    """More ranks than images; a port that is in use; a host whose launcher is never started."""
    recipe = write_recipe(folder / "recipe.yaml")
    (folder / "hosts").write_text("a slots=1\nb slots=1\n")
    alone = ["--hostfile", folder / "hosts", "--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for what, words, environment, code, said in (
            ("5 ranks for 4 images", ["--num_gpus", 5], {}, 2, "run.images_per_round must be at least the"),
            ("a port in use", ["--num_gpus", 2, "--master_port", port], {}, 2, f"port {port}, at which the ranks"),
            ("a host that never comes", alone, {"MEMDIFF_SECONDS_TO_MEET": "10"}, 6, "waited 10 s"),
        ):  # fmt: skip
            command = [
                "deepspeed.launcher.runner",
                "--log_level",
                "error",
                *words,
                "--module",
                "memdiff",
                "train",
                recipe,
            ]
            log = folder / f"{code}_{len(words)}.log"
            run = Run([*command, "--out", folder / "run"], log, DS_ACCELERATOR="cpu", **environment)
            yield attempt("R21", what, run, lambda run=run, code=code, said=said: _told(run, code, said))


def _told(run: Run, code: int, words: str) -> float:
    begun = time.monotonic()
    ended = run.end()
    took = time.monotonic() - begun
    lines = [line for line in run.said().splitlines() if LAST_LINE.match(line)]
    assert ended == code and lines and lines[0].startswith(f"memdiff: error[{code}]") and words in lines[0], run.said()
    assert run.orphans(PATIENCE * 5) == [], "something lives on"
    return took
