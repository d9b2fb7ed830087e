"""What a DeepSpeed file may hold: keys, kinds and bounds, as DeepSpeed 0.19 reads them. No torch.

DeepSpeed's own models come with torch, which takes seconds, and look at a part of the file alone: what they don't know
in the other blocks they pass over in silence. `tests/training/test_deepspeed_keys.py` holds these to them.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, create_model

Keys = str  # separated by blanks
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Where DeepSpeed checks nothing a text would pass for true, and "ten" break off the first round.
Switch = StrictBool | None
Times = Annotated[float, Field(gt=0, strict=True)] | None  # Infinity: never
SHOWN, MOST_SHOWN = 60, 20  # characters of a key or value, problems of a file


def _block(name: str, *rows: tuple[Any, Keys]) -> type[BaseModel]:
    """An object of these keys and no others, each of the kind beside it; any may be left out."""
    fields: dict[str, Any] = {key: (kind, None) for kind, keys in rows for key in keys.split()}
    return create_model(name, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)


ZENFLOW = _block(
    "zenflow",
    (float, "topk_ratio"),
    (str, "select_strategy"),
    (str | int, "select_interval update_interval"),
    (bool, "overlap_step offload"),
    (Share, "auto_ratio pt_reserved_cores_perc"),
    (int, "full_warm_up_rounds"),
    (int | None, "steps_per_epoch"),
)
LEAF_MODULE = _block("leaf_module", (list[str] | str, "classes names name_suffixes"))
ZERO = _block(
    "zero_optimization",
    (
        bool,
        "contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions compute_grad_norm "
        "load_from_fp32_weights elastic_checkpoint ignore_unused_parameters legacy_stage1 round_robin_gradients "
        "parameter_alignment zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
        "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
        "enable_sanity_checks save_muon_momentum_buffer_in_memory gather_16bit_weights_on_model_save "
        "stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save "
        "use_all_reduce_for_fetch_params stage3_use_all_reduce_for_fetch_params allgather_sequential "
        "stage3_allgather_sequential",
    ),
    (bool | None, "overlap_comm cpu_offload_param cpu_offload_use_pin_memory"),
    (Positive, "reduce_bucket_size"),
    (
        Count,
        "allgather_bucket_size sub_group_size zero_hpz_partition_size prefetch_bucket_size "
        "stage3_prefetch_bucket_size param_persistence_threshold stage3_param_persistence_threshold "
        "model_persistence_threshold stage3_model_persistence_threshold max_live_parameters "
        "stage3_max_live_parameters max_reuse_distance stage3_max_reuse_distance",
    ),
    (int, "module_granularity_threshold stage3_module_granularity_threshold"),
    (ZENFLOW | None, "zenflow"),
    (LEAF_MODULE | None, "leaf_module"),
)
FP16 = _block(
    "fp16",
    (int, "hysteresis loss_scale_window min_loss_scale"),
    (bool, "consecutive_hysteresis fp16_master_weights_and_grads"),
)
BF16 = _block(
    "bf16", (bool, "immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states")
)
COMPILE = _block(
    "compile",
    (
        bool,
        "deepcompile autoep_non_moe free_activation offload_activation offload_activation_pin_memory "
        "offload_opt_states double_buffer symmetric_memory debug_log offload_parameters sync_before_reduce "
        "sync_after_reduce sync_before_allgather sync_after_allgather keep_int_input_tensors keep_all_input_tensors",
    ),
    (int, "free_activation_threshold"),
    (list[str] | None, "passes"),
)
TABLES = _block("monitor", (bool, "enabled"), (str, "output_path job_name"))
WANDB = _block("wandb", (bool, "enabled"), (str | None, "group team"), (str, "project"))
COMET = _block(
    "comet",
    (bool, "enabled"),
    (int, "samples_log_interval"),
    (bool | None, "online"),
    (str | None, "project workspace api_key experiment_name experiment_key mode"),
)
COMMS_LOGGER = _block("comms_logger", (bool, "enabled prof_all verbose debug"), (list[Any], "prof_ops"))
TIMERS = _block("timers", (_block("throughput", (bool, "enabled synchronized")), "throughput"))
FLOPS_PROFILER = _block(
    "flops_profiler",
    (Switch, "enabled detailed"),
    (Annotated[float, Field(strict=True)], "recompute_fwd_factor"),
    (StrictInt, "profile_step module_depth top_modules"),
    (str | None, "output_file"),
)
AIO = _block(
    "aio", (StrictInt, "block_size queue_depth intra_op_parallelism"), (Switch, "single_submit overlap_events use_gds")
)
WRITER = _block(
    "writer",
    (str | None, "type data_parallel"),
    (float, "io_buffer_size io_multiplier"),
    (Switch, "io_buffer_double show_statistics decoupled"),
)
CHECKPOINT = _block(
    "checkpoint",
    (str, "tag_validation"),
    (Switch, "checkpoint_serialization load_universal use_node_local_storage"),
    (WRITER | None, "writer"),
    (_block("parallel_write", (StrictBool, "pipeline_stage")), "parallel_write"),
)
TORCH_AUTOCAST = _block(
    "torch_autocast", (Switch, "enabled"), (str, "dtype"), (list[str], "lower_precision_safe_modules")
)
DATA_TYPES = _block(
    "data_types", (str | None, "grad_accum_dtype param_dtype buffer_dtype"), (list[str] | str, "keep_in_fp32_modules")
)
FILE = _block(
    "file",
    (ZERO, "zero_optimization"),
    (FP16, "fp16"),
    (BF16, "bf16"),
    (COMPILE, "compile"),
    (TABLES, "tensorboard csv_monitor"),
    (WANDB, "wandb"),
    (COMET, "comet"),
    (COMMS_LOGGER, "comms_logger"),
    (TIMERS, "timers"),
    (FLOPS_PROFILER, "flops_profiler"),
    (AIO | None, "aio"),
    (CHECKPOINT, "checkpoint"),
    (TORCH_AUTOCAST, "torch_autocast"),
    (DATA_TYPES, "data_types"),
    (
        Switch,
        "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown dump_state prescale_gradients "
        "memory_breakdown disable_allgather",
    ),
    (Times, "steps_per_print"),
    (Annotated[float, Field(gt=0, strict=True)], "gradient_predivide_factor"),
    (str | None, "communication_data_type seq_parallel_communication_data_type"),
)


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a file that has none of the trainer's own keys: of each key, as it is written there."""
    try:
        FILE.model_validate(config)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False)
        more = len(mistakes) - MOST_SHOWN
        return [_told(mistake) for mistake in mistakes[:MOST_SHOWN]] + ([f"and {more} more"] if more > 0 else [])
    return []


def known_keys(block: type[BaseModel], prefix: str = "") -> dict[str, set[str]]:
    """The keys of a block, and of those within it, by the block's dotted name."""
    keys = {prefix: set(block.model_fields)}
    for name, field in block.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= known_keys(kind, f"{prefix}.{name}".removeprefix("."))
    return keys


def _told(mistake: Mapping[str, Any]) -> str:
    """Of one mistake: the dotted key, what it should be and what it is."""
    place = [str(part)[:SHOWN] for part in mistake["loc"]]
    dotted, message = ".".join(place), str(mistake["msg"])
    if mistake["type"] == "extra_forbidden":
        near = get_close_matches(place[-1], known_keys(FILE).get(".".join(place[:-1]), ()), n=1)
        return f"DeepSpeed knows no key {dotted}{f'; did you mean {near[0]}?' if near else ''}"
    if mistake["type"] == "model_type":
        return f"{dotted} must be an object, got {mistake['input']!r:.{SHOWN}}"
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {mistake['input']!r:.{SHOWN}}"
