"""Training as DeepSpeed's own examples have it, nothing of memdiff: what `tests.faults.bare_deepspeed` strikes.

`deepspeed --module tests.workers.plain_deepspeed FOLDER ROUNDS`. PLAIN_FAULT="KIND:rank=N,round=N,point=PLACE" strikes
once: KIND kill or freeze, PLACE train, or save (before this rank's shard is written).
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
SETTINGS = {
    "train_micro_batch_size_per_gpu": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
}


def strike(rank: int, number: int, point: str) -> None:
    """Where it is asked for here."""
    kind, _, rest = os.environ.get("PLAIN_FAULT", "").partition(":")
    if rest == f"rank={rank},round={number},point={point}":
        os.kill(os.getpid(), SIGNALS[kind])


def main() -> None:
    """Goes on from what `latest` names."""
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    folder, rounds = Path(words[0]), int(words[1])
    deepspeed.init_distributed("gloo", verbose=False)
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))
    parameters: Any = model.parameters()
    engine = deepspeed.initialize(model=model, model_parameters=parameters, config=dict(SETTINGS))[0]
    path, state = engine.load_checkpoint(str(folder)) if (folder / "latest").exists() else (None, {})
    done = int(dict(state or {}).get("round", 0))
    if rank == 0:
        sys.stdout.write(f"begins after {done}, from {path}\n")
    for number in range(done + 1, rounds + 1):
        strike(rank, number, "train")
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1000 * number + rank))
        engine.backward((engine(x) - x).square().mean())
        engine.step()
        strike(rank, number, "save")
        engine.save_checkpoint(str(folder), tag=f"round_{number}", client_state={"round": number})
        if rank == 0:
            sys.stdout.write(f"round {number}\n")
            sys.stdout.flush()
        time.sleep(0.2)


if __name__ == "__main__":
    main()
