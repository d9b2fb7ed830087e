"""Trials on a run that evaluates after each round, and keeps the best model: killed in it, and without room for it."""

from collections.abc import Iterator
from pathlib import Path

from tests.faults.results import Result, attempt, struck
from tests.faults.runs import (
    Run,
    complete_with_one_warning,
    fingerprint,
    to_the_end,
    train,
    uninterrupted,
    write_recipe,
)

EVALUATED = {"evaluate": {"every": 1, "images": 4}, "optimizer": {"learning_rate": 0.01}}
KILLED_AT = (("evaluation", 1, 1), ("evaluation", 0, 7), ("save model", 0, 2), ("after the round", 1, 2))


def killed_and_full(folder: Path) -> Iterator[Result]:
    """R1 and R5 in evaluations and where a model is written; R9 where the best has no room: the run goes on."""
    place = folder / "evaluated"
    place.mkdir()
    recipe, out = write_recipe(place / "recipe.yaml", **EVALUATED), place / "killed"
    for point, rank, nth in KILLED_AT:
        run = train(recipe, out, MEMDIFF_FAULT=f"kill:point={point},rank={rank},nth={nth}")

        def action(run: Run = run, rank: int = rank) -> float:
            return struck(run, lambda: None, 6, f"rank {rank} (pid ", 600.0) and 0.0

        yield attempt("R5", f"kill -9 of rank {rank} at {point}, number {nth}", run, action)
    run = train(recipe, out)
    what = f"evaluated: bitwise after the kills at {', '.join(point for point, _, _ in KILLED_AT)}"
    result = attempt("R1", what, run, to_the_end(run, out, recipe))
    yield from [result] * len(KILLED_AT)
    full = place / "full"
    run = train(recipe, full, MEMDIFF_FAULT="full:point=save model,nth=2")

    def goes_on() -> float:
        complete_with_one_warning(run, "model_best: ", "No space left on device")
        alone, own = uninterrupted(folder, recipe), fingerprint(full)
        assert own["model"] == alone["model"], "weights differ from the run that was left alone"
        return 0.0

    yield attempt("R9", "no room for the best model, once", run, goes_on)
