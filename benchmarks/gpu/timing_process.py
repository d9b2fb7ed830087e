"""All timing rows one after the other in one process, each written as soon as it is known.

    python -m benchmarks.gpu.timing_process CASES.json ROWS.jsonl --ends TIME

Starting a process costs some 20 s of imports, which every row would pay. A row whose estimate goes past the end is left
out; what is on the device is freed between rows.
"""

import argparse
import contextlib
import gc
import json
import time
from pathlib import Path

import torch

from benchmarks.gpu.timing import measure_timing
from benchmarks.provenance import of_process
from benchmarks.worker import outcome_of, wait_for_turn


def main() -> None:
    """The command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--ends", type=float, required=True, help="time.time() after which no row may go on")
    options = parser.parse_args()
    torch.set_num_threads(2)
    wait_for_turn()
    for case in json.loads(options.cases.read_text()):
        if time.time() + case["estimate_s"] > options.ends:
            result = {"outcome": "left out", "message": "its time was gone", "figures": {}}
        else:
            start = time.monotonic()
            result = outcome_of(measure_timing, case["settings"])
            result["figures"]["seconds_in_all"] = round(time.monotonic() - start, 1)
        with options.rows.open("a") as file:
            file.write(json.dumps({"case": case["name"], **result, "process": of_process()}) + "\n")
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
