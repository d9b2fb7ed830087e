"""The keys, kinds and bounds that a DeepSpeed file is held to are those that the installed DeepSpeed reads.

A key that a new version adds, drops or bounds otherwise fails here, before it fails a user.
"""

import copy
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from memdiff.engine.ds_config import OWNED, SHIPPED
from memdiff.engine.ds_keys import FILE, known_keys, problems_of
from memdiff.runtime.shipped_folder import shipped_folder

# DeepSpeed reads these of any file; memdiff trains by no pipeline, no quantisation and no sampler of DeepSpeed's.
OF_NO_USE = {
    "autotuning", "dataloader_drop_last", "data_efficiency", "datastates_ckpt", "disable_python_gc", "expert_parallel",
    "gradient_allreduce_op", "hybrid_engine", "log_level", "managed_gradient_accumulation", "model_info", "pipeline",
    "tensor_parallel", "use_data_before_expert_parallelism", "vocabulary_size", "weight_quantization",
}  # fmt: skip
VALUES: list[Any] = [True, False, None, 0, 1, -1, 7, 0.5, 1.0, 2.5, -0.5, "", "x", "1", "yes", [], ["x"], [1], {}]


class Asked(dict[str, Any]):
    """An object of a file that notes which of its keys anybody asks for."""

    def __init__(self, content: Any = ()) -> None:
        super().__init__(
            {key: Asked(value) if isinstance(value, dict) else value for key, value in dict(content).items()}
        )
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return _Keys(self)

    def __copy__(self) -> "Asked":
        return self


class _Keys:
    """`key in file.keys()`, as DeepSpeed asks at times."""

    def __init__(self, content: Asked) -> None:
        self._content = content

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._content))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """DeepSpeed says much while it reads."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def models() -> dict[str, type[BaseModel]]:
    """DeepSpeed's own models of blocks, by their dotted names."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig, "zero_optimization.zenflow": ZenFlowConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig, "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config, "compile": CompileConfig, "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig, "wandb": WandbConfig, "comet": CometConfig, "comms_logger": CommsLoggerConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }  # fmt: skip


def owned_in(block: str) -> set[str]:
    """The trainer's own keys of a block, which are taken out before it is looked at."""
    return {key.removeprefix(f"{block}.") for key in OWNED if key.startswith(f"{block}.")}


def test_each_models_keys_are_known_and_no_others() -> None:
    """Names and aliases, as DeepSpeed takes both."""
    known = known_keys(FILE)
    for block, model in models().items():
        names = {*model.model_fields} | {field.alias for field in model.model_fields.values() if field.alias}
        assert known[block] == names - owned_in(block), block


def in_file(block: str, key: str, value: Any) -> dict[str, Any]:
    """A file of this one key."""
    content: dict[str, Any] = {key: value}
    for name in reversed(block.split(".")):
        content = {name: content}
    return content


def test_what_a_model_takes_is_taken() -> None:
    """Every key with values of every kind: refused here, it is refused there. The other way round only the named ones
    pass here, whose kinds DeepSpeed writes in code; its own reading of the file comes after this one."""
    laxer = set()
    for (block, model), value in itertools.product(models().items(), VALUES):
        for key in known_keys(FILE)[block]:
            if isinstance(value, dict) and f"{block}.{key}" in models():
                continue
            try:
                model(**{key: copy.deepcopy(value)})
                refused = False
            except (ValidationError, TypeError, AssertionError):
                refused = True
            problems = problems_of(in_file(block, key, value))
            assert not problems or refused, (block, key, value, problems)
            if refused and not problems:
                laxer.add(f"{block}.{key}")
    assert laxer <= {
        "fp16.loss_scale_window", "fp16.min_loss_scale", "zero_optimization.compute_grad_norm", "compile.passes",
        "zero_optimization.zenflow.topk_ratio", "zero_optimization.zenflow.select_strategy",
        "zero_optimization.zenflow.select_interval", "zero_optimization.zenflow.update_interval",
        "zero_optimization.zenflow.pt_reserved_cores_perc",
    }, laxer  # fmt: skip


def test_the_other_blocks_keys_are_those_that_deepspeed_asks_for() -> None:
    """Where it has no model it asks a block for each key that it knows, and passes over the others."""
    from deepspeed.runtime.config import DeepSpeedConfig

    blocks = ("flops_profiler", "aio", "checkpoint", "torch_autocast", "data_types", "timers")
    content: dict[str, Any] = {block: {} for block in blocks}
    content["checkpoint"] = {"writer": {}, "parallel_write": {}}
    content["timers"] = {"throughput": {}}
    content["torch_autocast"] = {"enabled": True, "dtype": "fp16", "lower_precision_safe_modules": []}
    file = Asked(content | {"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(file)
    known = known_keys(FILE)
    for block in blocks:
        assert file[block].keys_asked == known[block], block
    for block in ("writer", "parallel_write"):
        assert file["checkpoint"][block].keys_asked == known[f"checkpoint.{block}"], block
    trainers = {key for key in OWNED if "." not in key}
    gone = {key for key in file.keys_asked if refused_as_removed(key)}
    asked = file.keys_asked - gone - OF_NO_USE - trainers - {"train_micro_batch_size_per_gpu", "bfloat16"}
    assert asked == known[""]


def refused_as_removed(key: str) -> bool:
    """Whether DeepSpeed says of a key that what it was for is gone."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig({key: {}, "train_micro_batch_size_per_gpu": 1})
    except DeepSpeedConfigError as error:
        return "removed" in str(error)
    except Exception:
        return False
    return False


def test_shipped_files_and_deepspeeds_own_defaults_pass() -> None:
    for file in sorted(shipped_folder(SHIPPED).glob("*.json")):
        content = json.loads(file.read_text())
        plain = {key: value for key, value in content.items() if key not in OWNED}
        for block in ("zero_optimization", "fp16", "bf16"):
            if block in plain:
                plain[block] = {key: value for key, value in plain[block].items() if key not in owned_in(block)}
        assert problems_of(plain) == []
    for block, model in models().items():
        for key, value in model().model_dump().items():
            if key in known_keys(FILE)[block]:
                assert problems_of(in_file(block, key, value)) == [], (block, key)


def test_scalars_that_deepspeed_would_take_as_they_are() -> None:
    """A text is true to it, and a step that is none breaks off the first round."""
    assert problems_of({"steps_per_print": float("inf"), "wall_clock_breakdown": True}) == []
    said = problems_of({"steps_per_print": 0, "wall_clock_breakdown": "false", "flops_profiler": {"enabld": True}})
    assert [line.split(",")[0] for line in said] == [
        "DeepSpeed knows no key flops_profiler.enabld; did you mean enabled?",
        "wall_clock_breakdown: input should be a valid boolean", "steps_per_print: input should be greater than 0",
    ]  # fmt: skip
    assert problems_of({str(number): 1 for number in range(30)})[-1] == "and 10 more"
