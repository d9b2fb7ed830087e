"""One rank: leaving a round together, a save that one rank can't write, weights that one rank lost a bit of."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch

from memdiff.engine.checkpoint import Checkpoints
from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.process_group import start_process_group
from memdiff.errors import CheckpointError, NumericError, OutOfMemoryError, StopRequested
from memdiff.processes import landmarks
from memdiff.processes.ending import leave
from memdiff.processes.stops import Stops, exit_at_once
from memdiff.runtime.ranks import Ranks
from tests.helpers.tiny import CPU
from tests.workers.engine_parity import rank_and_size


def left_together(ranks: Ranks, stops: Stops, asked: int, sleeps: int) -> str:
    """Rank `asked` is asked to stop while it works (asleep, or before a collective); where each rank leaves."""
    stops.number, at, value = None, "start", torch.ones(1)
    try:
        with stops.leaving(together=True):
            for at in ("first", "second", "third"):
                ranks.sum(value)
                if ranks.rank == asked and at == "second":
                    if not sleeps:
                        with stops.staying():  # as if it came during a collective
                            os.kill(os.getpid(), signal.SIGTERM)
                    else:
                        signal.setitimer(signal.ITIMER_REAL, 0.2)
                        time.sleep(600)
            ranks.stay_together()
    except StopRequested as request:
        ranks.leave_together(request)
        return f"left at {at}"
    return "stayed"


def stays_after_it(ranks: Ranks, stops: Stops) -> str:
    """A request after `stay_together` is noted, and all ranks go on to the end."""
    stops.number = None
    with stops.leaving(together=True):
        ranks.sum(torch.ones(1))
        ranks.stay_together()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        ranks.sum(torch.ones(1))
    return f"went on, asked: {ranks.asked_to_stop()}"


def make_engine(ranks: Ranks) -> tuple[DeepSpeedEngine, dict[str, torch.nn.Parameter]]:
    parameters = {name: torch.nn.Parameter(torch.ones(5)) for name in ("first", "second")}
    config = OptimizerConfig(learning_rate=1e-3)
    settings = make_ds_config(config, precision="fp32", offload=False, trainable_elements=10)
    return DeepSpeedEngine(parameters, config, ranks, ds_config=settings), parameters


def saves(ranks: Ranks, engine: DeepSpeedEngine, folder: Path) -> dict[str, Any]:
    """A whole save, then three that rank 1 can't write: what was said, and what lies there."""
    said: list[str] = []
    checkpoints = Checkpoints(folder / "checkpoints", ranks, keep=2, say=said.append)
    checkpoints.save(engine, {"round": 1})
    whole = engine.save

    def broken(folder: Path) -> None:
        if ranks.rank == 1:
            torch.save = full
        try:
            whole(folder)
        finally:
            torch.save = kept

    def full(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device", str(folder))

    kept, engine.save = torch.save, broken
    ended = ""
    for number in (2, 3, 4):
        try:
            checkpoints.save(engine, {"round": number})
        except CheckpointError as error:
            ended = str(error)
    engine.save = whole
    after = checkpoints.restore(engine)
    return {
        "said": said, "ended": ended, "restored": after[0].name if after else None,
        "names": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }  # fmt: skip


def diverged(ranks: Ranks, engine: DeepSpeedEngine, parameters: dict[str, torch.nn.Parameter]) -> str:
    """The last rank's second parameter is one unit in the last place off."""
    engine.gradients.zero()
    engine.apply()
    weight = parameters["second"].data
    if ranks.rank == 1:
        weight[3] = torch.nextafter(weight[3], torch.tensor(2.0))
    try:
        engine.apply()
    except NumericError as error:
        return f"{error.exit_code} {error}"
    return "not seen"


def short_of_memory(ranks: Ranks, engine: DeepSpeedEngine, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    """Memory runs out on rank 1, once as an update looks at this rank, and once in the update itself, on both ranks."""
    shorts = iter([True])

    def short(place: str) -> None:
        if ranks.rank == 1 and next(shorts, False):
            raise torch.OutOfMemoryError("a fault that was asked for")

    result: dict[str, Any] = {}
    for name in ("room", "short"):
        if name == "short":
            landmarks.observe(short)
        engine.load(Path(json.loads(sys.argv[1])["folder"]) / "checkpoints/round_000001")
        engine.gradients.zero()
        for total in engine.gradients.sums:
            total.fill_(0.5)
        engine.apply()
        result[name] = [float(value) for parameter in parameters.values() for value in parameter.detach()]
    result["again"] = next(shorts, "struck")
    engine.gradients.sums[0].fill_(1.0)
    cast(Any, engine._engine).step = short_anywhere
    try:
        engine.apply()
    except OutOfMemoryError as error:
        result["ended"] = f"{error.exit_code} {error}"
    return result


def short_anywhere() -> None:
    raise torch.OutOfMemoryError("a fault that was asked for")


def main() -> None:
    """Writes what came of all."""
    stops = Stops(exit_at_once)
    ranks = Ranks(*rank_and_size(), CPU, stops)
    start_process_group(ranks)
    stops.listen()
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    folder = Path(json.loads(sys.argv[1])["folder"])
    result: dict[str, Any] = {
        f"asked {asked} {sleeps}": left_together(ranks, stops, asked, sleeps) for asked in (0, 1) for sleeps in (0, 1)
    }
    result["after"] = stays_after_it(ranks, stops)
    engine, parameters = make_engine(ranks)
    result["saves"] = saves(ranks, engine, folder)
    result["short"] = short_of_memory(ranks, engine, parameters)
    engine, parameters = make_engine(ranks)
    result["diverged"] = diverged(ranks, engine, parameters)
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    leave()
