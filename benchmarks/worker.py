"""One case in a process of its own: reads it from a file as JSON, writes its figures to another as JSON.

Runs in memdiff's environment or in the peers'. Running out of memory is an outcome, not a crash.
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, assert_never

import torch

from benchmarks.case import Measure
from benchmarks.provenance import of_process
from memdiff.processes.ending import leave

Figures = dict[str, Any]


def function_of(measure: Measure) -> Callable[[Mapping[str, Any]], Figures]:
    """What takes a measurement; imported only where it is needed, since the environments differ."""
    match measure:
        case "training":
            from benchmarks.measures.training import measure_training

            return measure_training
        case "untrained":
            from benchmarks.measures.untrained import measure_untrained

            return measure_untrained
        case "plan":
            from benchmarks.measures.planning import measure_plan

            return measure_plan
        case "trl_alignprop":
            from benchmarks.peers.trl_trainers import measure_alignprop

            return measure_alignprop
        case "trl_ddpo":
            from benchmarks.peers.trl_trainers import measure_ddpo

            return measure_ddpo
        case "bare":
            from benchmarks.peers.bare import measure_bare

            return measure_bare
        case "timing":
            from benchmarks.gpu.timing import measure_timing

            return measure_timing
        case "simulated_loop":
            from benchmarks.measures.simulated_loop import measure_simulated_loop

            return measure_simulated_loop
        case _:
            assert_never(measure)


def outcome_of(measure: Callable[[Mapping[str, Any]], Figures], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`outcome` ok, oom or failed, with the figures or the reason."""
    try:
        return {"outcome": "ok", "figures": measure(settings)}
    except torch.OutOfMemoryError as error:
        return {"outcome": "oom", "message": str(error).splitlines()[0], "figures": {}}
    except Exception as error:  # a case that fails is a row that says so; the suite goes on
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return {"outcome": "failed", "message": f"{type(error).__name__}: {first}", "figures": {}}


def wait_for_turn() -> None:
    """Until the file is there that MEMDIFF_BENCH_GO names, where it names one: everything is imported by then."""
    file = os.environ.get("MEMDIFF_BENCH_GO")
    while file and not Path(file).exists():
        time.sleep(0.1)


def main() -> None:
    """The command line of the process; rank 0 of several writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    case = json.loads(options.case.read_text())
    torch.set_num_threads(case["threads"])
    measure = function_of(case["measure"])
    if case["measure"] == "untrained":
        from benchmarks.measures.untrained import fill_round_cache

        fill_round_cache(case["settings"])
    wait_for_turn()
    result = outcome_of(measure, case["settings"])
    if int(os.environ.get("RANK", "0")) == 0:
        options.out.write_text(json.dumps({**result, "process": of_process()}))
    leave(int(result["outcome"] != "ok"))  # of several ranks the others are stopped: they would wait for this one


if __name__ == "__main__":
    main()
