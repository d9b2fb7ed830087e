"""One rank: what an engine backward, a step and the change to the average take, counted by the ledger."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.process_group import start_process_group
from memdiff.planner.ledger import Ledger
from memdiff.processes.ending import leave
from memdiff.runtime.ranks import Ranks
from tests.helpers.half_on_cpu import allow_half


def bytes_of(mode: dict[str, Any], sizes: list[int], ranks: Ranks) -> dict[str, int]:
    """Bytes above what is there between updates, in the second update, and then in an evaluation."""
    half = mode["precision"] == "fp16"
    parameters = {
        str(number): torch.nn.Parameter(torch.zeros(size, dtype=torch.half if half else torch.float))
        for number, size in enumerate(sizes)
    }
    config = OptimizerConfig(bits=mode["bits"], ema=mode["ema"])
    ds_config = make_ds_config(config, precision=mode["precision"], offload=False, trainable_elements=sum(sizes))
    zero = ds_config["zero_optimization"]
    zero |= {"reduce_bucket_size": mode["bucket"] or zero["reduce_bucket_size"]}
    ledger = Ledger()
    with ledger:
        engine = DeepSpeedEngine(parameters, config, ranks, ds_config=ds_config)
        for group in engine._zero.optimizer.param_groups:
            group["foreach"] = (
                mode["bits"] == 32
            )  # what torch takes on CUDA; on a CPU its plain loop keeps one copy more
        before = 0
        for _ in range(2):
            for total in engine.gradients.sums:
                total.fill_(0.5)
            before = ledger.live_bytes
            with ledger.phase("apply"):
                ledger.reset_peak()
                engine.apply()
        apply = ledger.peaks["apply"].bytes - before
        before = ledger.live_bytes
        with ledger.phase("evaluate"), engine.evaluated():
            inside = ledger.live_bytes - before
        exchange = ledger.peaks["evaluate"].bytes - before
    return {"bucket": zero["reduce_bucket_size"], "apply": apply, "inside": inside, "exchange": exchange}


def main(arguments: dict[str, Any], result: Path) -> None:
    """Every mode in turn."""
    allow_half()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu"))
    start_process_group(ranks)
    mode_bytes = [bytes_of(mode, arguments["sizes"], ranks) for mode in arguments["modes"]]
    result.write_text(json.dumps(mode_bytes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
    leave()
