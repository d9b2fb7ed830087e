"""One rank: numbers that are not finite on one rank alone, through `Ranks` and through DeepSpeed's engine."""

import json
import math
import sys
from pathlib import Path

import torch

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_config import make_ds_config
from memdiff.engine.engine import DeepSpeedEngine
from memdiff.engine.process_group import start_process_group
from memdiff.errors import NumericError
from memdiff.processes.ending import leave
from memdiff.runtime.ranks import Ranks
from tests.helpers.tiny import CPU
from tests.workers.engine_parity import rank_and_size

VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def largest(ranks: Ranks) -> dict[str, str]:
    """The maximum over ranks where the last rank's middle value is not finite, as text."""
    maxima = {}
    for name, value in VALUES.items():
        values = torch.tensor([1.0 + ranks.rank, value if ranks.rank == ranks.world_size - 1 else 2.0, -3.0])
        maxima[name] = str(ranks.max(values).tolist())
    return maxima | {"whole": str(ranks.max(torch.tensor([ranks.rank, -ranks.rank])).tolist())}


def refusals(ranks: Ranks) -> dict[str, str]:
    """What an update says where the last rank's gradient of the second parameter is not finite."""
    parameters = {name: torch.nn.Parameter(torch.ones(3)) for name in ("first", "second")}
    config = OptimizerConfig(learning_rate=1e-3)
    engine = DeepSpeedEngine(
        parameters, config, ranks,
        ds_config=make_ds_config(config, precision="fp32", offload=False, trainable_elements=6),
    )  # fmt: skip
    said = {}
    for name, value in VALUES.items():
        engine.gradients.zero()
        if ranks.rank == ranks.world_size - 1:
            engine.gradients.sums[1][2] = value
        try:
            engine.apply()
        except NumericError as error:
            said[name] = str(error)
    engine.gradients.zero()
    engine.gradients.sums[1][2] = 3e38  # finite on every rank, infinite when the ranks' are added
    update = engine.apply()
    return said | {"skipped": f"{update.skipped} {engine.updates} {parameters['second'].tolist()}"}


def main() -> None:
    """Writes what came of both."""
    ranks = Ranks(*rank_and_size(), CPU)
    start_process_group(ranks)
    Path(sys.argv[2]).write_text(json.dumps({"largest": largest(ranks), "refusals": refusals(ranks)}))


if __name__ == "__main__":
    main()
    leave()
