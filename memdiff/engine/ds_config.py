"""The DeepSpeed JSON: from the file in ds_configs/ that fits the recipe, or from the user's own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memdiff.engine.config import OptimizerConfig
from memdiff.errors import ConfigError

LARGEST_BUCKET = 50_000_000  # elements; DeepSpeed's own default of 5e8 is 0.93 GiB in fp16, anew at every backward

# What the trainer decides, and how a user says it in the recipe instead.
OWNED = {
    "train_batch_size": "run.images_per_round",
    "train_micro_batch_size_per_gpu": "memory.micro_batch",
    "gradient_accumulation_steps": "nothing: one engine backward is one update",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "the recipe's optimizer section",
    "scheduler": "optimizer.warmup_updates",
    "zero_optimization.stage": "nothing: the trainer reads ZeRO-2's partitions",
    "zero_optimization.offload_optimizer": "memory.offload_optimizer",
    "zero_optimization.offload_param": "nothing: it belongs to ZeRO-3",
    "fp16.enabled": "model.precision",
    "fp16.loss_scale": "nothing: the scale is set from the largest gradient",
    "fp16.initial_scale_power": "nothing: the scale is set from the largest gradient",
    "fp16.auto_cast": "nothing: the network sees no engine",
    "bf16.enabled": "model.precision",
    "amp": "model.precision",
    "activation_checkpointing": "memory.activation_checkpointing",
}

# Top-level keys of DeepSpeed 0.19's documentation; it accepts any other in silence.
KNOWN = {
    "zero_optimization", "fp16", "bf16", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "steps_per_print", "wall_clock_breakdown", "dump_state", "prescale_gradients", "gradient_predivide_factor",
    "sparse_gradients", "communication_data_type", "seq_parallel_communication_data_type", "data_types",
    "comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet", "aio", "nebula", "checkpoint",
    "memory_breakdown", "disable_allgather", "timers", "compile", "torch_autocast",
}  # fmt: skip


def shipped_folder() -> Path:
    """ds_configs/ of a checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "ds_configs"
    return beside if beside.is_dir() else package / "ds_configs"


def shipped_name(*, precision: str, bits: int, offload: bool) -> str:
    """The file that fits: bf16 starts from the fp16 file of the same kind."""
    if precision == "fp32" and bits == 32 and not offload:
        return "zero2_fp32_cpu.json"
    return f"zero2_fp16{'_offload' if offload else ''}{'_8bit' if bits == 8 else ''}.json"


def make_ds_config(
    optimizer: OptimizerConfig, *, precision: str, offload: bool, trainable_elements: int, user_file: Path | None = None
) -> dict[str, Any]:
    """What deepspeed.initialize gets: the starting file, the recipe laid over it, buckets sized to what is trained."""
    if user_file is None:
        config = json.loads(
            (shipped_folder() / shipped_name(precision=precision, bits=optimizer.bits, offload=offload)).read_text()
        )
        # ZeRO asserts that the all-gather bucket is a multiple of its alignment (2 elements a rank).
        bucket = min(LARGEST_BUCKET, -(-max(1, trainable_elements) // 1024) * 1024)
        config["zero_optimization"] |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    else:
        config = read_user_file(user_file)
    fp16 = config.pop("fp16", {})
    bf16 = config.pop("bf16", {})
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = 2
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if precision == "fp16":
        config["fp16"] = fp16 | {"enabled": True, "loss_scale": 0}
    elif precision == "bf16":
        config["bf16"] = bf16 | {"enabled": True}
    return config | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def read_user_file(path: Path) -> dict[str, Any]:
    """A user's own JSON. Raises ConfigError for keys that the trainer owns and for top-level keys nobody reads."""
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--ds-config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--ds-config {path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--ds-config {path}: a JSON object is needed, got {type(config).__name__}")
    for key, instead in OWNED.items():
        if _holds(config, key):
            raise ConfigError(f"--ds-config {path}: {key} is the trainer's own; remove it. In its place: {instead}")
    unknown = sorted(set(config) - KNOWN)
    if unknown:
        raise ConfigError(f"--ds-config {path}: DeepSpeed knows no key {unknown[0]}, and would ignore it in silence")
    for block in ("zero_optimization", "fp16", "bf16"):
        if not isinstance(config.get(block, {}), dict):
            raise ConfigError(f"--ds-config {path}: {block} must be an object, got {config[block]!r}")
    return config


def _holds(config: Mapping[str, Any], dotted: str) -> bool:
    head, _, rest = dotted.partition(".")
    if head not in config:
        return False
    return not rest or (isinstance(config[head], Mapping) and _holds(config[head], rest))
