"""The DeepSpeed JSON: from the file in ds_configs/ that fits the recipe, or from the user's own."""

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from memdiff.engine.config import OptimizerConfig
from memdiff.engine.ds_keys import problems_of
from memdiff.errors import ConfigError
from memdiff.runtime.shipped_folder import shipped_folder
from memdiff.runtime.small_files import read_small_file

LARGEST_BUCKET = 50_000_000  # elements; DeepSpeed's own default of 5e8 is 0.93 GiB in fp16, anew at every backward

# What the trainer decides, and how a user says it in the recipe instead.
OWNED = {
    "train_batch_size": "run.images_per_round",
    "train_micro_batch_size_per_gpu": "memory.micro_batch",
    "gradient_accumulation_steps": "nothing: one engine backward is one update",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "the recipe's optimizer section",
    "scheduler": "optimizer.warmup_updates",
    "zero_optimization.cpu_offload": "memory.offload_optimizer",
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

SHIPPED = "ds_configs"
BLOCKS = {"DeepSpeedZeroConfig": "zero_optimization", "DeepSpeedFP16Config": "fp16", "DeepSpeedBF16Config": "bf16"}
MOST_BYTES = 10**6


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
        name = shipped_name(precision=precision, bits=optimizer.bits, offload=offload)
        config = json.loads((shipped_folder(SHIPPED) / name).read_text())
        # ZeRO asserts that the all-gather bucket is a multiple of its alignment (2 elements a rank).
        bucket = min(LARGEST_BUCKET, -(-max(1, trainable_elements) // 1024) * 1024)
        config["zero_optimization"] |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    else:
        config = read_user_file(user_file, agreed_values(optimizer, precision=precision, offload=offload))
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


def agreed_values(
    optimizer: OptimizerConfig, *, precision: str = "auto", offload: bool | Literal["auto"] = "auto"
) -> dict[str, tuple[Any, ...]]:
    """What a user's file may say of the trainer's own keys: what the trainer sets itself, and nothing at all."""
    adamw = {
        "lr": optimizer.learning_rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay,
    }
    on_host = [{"device": "cpu", **more} for more in ({}, {"pin_memory": True}, {"pin_memory": False})]
    return {
        "train_micro_batch_size_per_gpu": (1,),
        "gradient_accumulation_steps": (1,),
        "gradient_clipping": (optimizer.clip_norm,),
        "optimizer": ({}, *({"type": kind, "params": params} for kind in ("AdamW", "Adam") for params in ({}, adamw))),
        "scheduler": ({}, {"type": "WarmupLR", "params": {}}),
        "zero_optimization.stage": (2,),
        "zero_optimization.offload_optimizer": (
            {},
            *(on_host if offload in (True, "auto") else ()),
            *([{"device": "none"}] if offload in (False, "auto") else ()),
        ),
        "zero_optimization.offload_param": ({}, {"device": "none"}),
        "fp16.enabled": (True, False) if precision == "auto" else (precision == "fp16",),
        "fp16.loss_scale": (0,),
        "fp16.initial_scale_power": (16,),  # DeepSpeed's default, which stands for nothing
        "fp16.auto_cast": (False,),
        "bf16.enabled": (True, False) if precision == "auto" else (precision == "bf16",),
        "activation_checkpointing": ({},),
    }


def read_user_file(path: Path, agreed: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A user's own JSON, without what the trainer sets to the same (`agreed_values`), and without "auto".

    Raises ConfigError that names all keys that the trainer owns, and all that DeepSpeed would refuse or pass over.
    """
    try:
        content = read_small_file(path, what="--ds-config", most_bytes=MOST_BYTES)
        config = json.loads(content, object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise ConfigError(f"--ds-config {path}: No such file or directory") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--ds-config {path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--ds-config {path}: a JSON object is needed, got {type(config).__name__}")
    config = _without_auto(config)
    problems = [
        f"{key} is the trainer's own; remove it. In its place: {instead}"
        for key, instead in OWNED.items()
        if (value := _value_at(config, key)) is not None and value not in agreed.get(key, ())
    ]
    for key in OWNED:
        _remove(config, key)
    problems += problems_of(config)
    if problems:
        raise ConfigError(f"--ds-config {path}: {'; '.join(problems)}")
    return config


def check_nested_keys(config: Mapping[str, Any], path: Path) -> None:
    """DeepSpeed's own reading of a user's file, for what keys must be to each other. Loads torch and deepspeed.

    Raises ConfigError with all that it refuses.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig({**copy.deepcopy(dict(config)), "train_micro_batch_size_per_gpu": 1})
    except ValidationError as error:
        block = BLOCKS.get(error.title, error.title)
        problems = [
            f"{'.'.join(map(str, (block, *mistake['loc'])))}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
            for mistake in error.errors(include_url=False)
        ]
        raise ConfigError(f"--ds-config {path}: DeepSpeed refuses {'; '.join(problems)}") from None
    except Exception as error:  # asserts, and whatever a value of another type leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"--ds-config {path}: DeepSpeed refuses it: {reason}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of a file. A key that is there twice would count once, and nobody knows which."""
    ((name, count),) = Counter(name for name, _ in pairs).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"the key {name:.60} is given twice")
    return dict(pairs)


def _without_auto(node: Any) -> Any:
    """The same without the keys that Hugging Face's Trainer would fill in."""
    if not isinstance(node, dict):
        return node
    return {key: _without_auto(value) for key, value in node.items() if value != "auto"}


def _value_at(config: Mapping[str, Any], dotted: str) -> Any:
    """None where there is nothing."""
    node: Any = config
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def _remove(config: dict[str, Any], dotted: str) -> None:
    *sections, last = dotted.split(".")
    node: Any = config
    for key in sections:
        node = node.get(key, {})
    if isinstance(node, dict):
        node.pop(last, None)
