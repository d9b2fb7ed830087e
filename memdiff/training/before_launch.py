"""What a person has to be told of a run before its ranks start: in the order of what it costs to find out. No torch."""

import importlib.util
from pathlib import Path

from memdiff.engine.ds_config import agreed_values, check_nested_keys, read_user_file
from memdiff.errors import CheckpointError, ConfigError
from memdiff.models.folder import check_folder, check_layers, folder_of, no_way_to, to_be_fetched, unet_layers
from memdiff.models.lora.paths import find_adapter
from memdiff.recipe.contents import contents_of
from memdiff.recipe.recipe import Recipe
from memdiff.rewards.config import users_function
from memdiff.rewards.python_file import check_file
from memdiff.runtime.hub import why_unreachable
from memdiff.training.run_folder import Resume, RunFolder

MOST_RANKS = 1024
SECONDS_FOR_HUB = 5.0


def check_arguments(
    recipe: Recipe, folder: RunFolder, gpus: int | None, resume: Resume, ds_config: Path | None
) -> None:
    """Before torch is loaded: what the command line's own words come to, and the files of rewards.

    These are tried in a process of their own, which loads torch where they do. Raises ConfigError and CheckpointError.
    """
    folder.check_place()
    if resume == "must" and not folder.exists():
        raise CheckpointError(f"--resume must: {folder.path} holds no run; leave --resume out to start one")
    if gpus is not None:
        if not 1 <= gpus <= MOST_RANKS:
            raise ConfigError(f"--gpus must be 1..{MOST_RANKS}, got {gpus}")
        recipe.check_world_size(gpus)
    contents = contents_of(recipe, ds_config)
    if folder.exists() and resume != "never":
        folder.check_same(recipe, contents)
    check_folder(recipe.model)
    place = folder_of(recipe.model)
    layers = unet_layers(place) if place is not None else None
    if layers is not None:
        check_layers(layers, recipe.adapter, recipe.trained_modules)
    for file, function in filter(None, map(users_function, (*recipe.reward, *recipe.evaluate.rewards))):
        check_file(Path(file), function)


def check_before_launch(recipe: Recipe, ds_config: Path | None, world_size: int) -> None:
    """What no rank needs to be started for: the device, DeepSpeed's file, the hub.

    Raises ConfigError. Of a model on the hub, which a rank will fetch, its name alone is asked for.
    """
    from memdiff.training.launcher import name_accelerator

    name_accelerator()
    _check_operators(recipe, world_size)
    if recipe.model.precision not in ("auto", "fp32"):
        from memdiff.engine.engine import check_precision

        check_precision(recipe.model.precision)
    if ds_config is not None:
        check_nested_keys(read_user_file(ds_config, agreed_values(recipe.optimizer)), ds_config)
    _check_hub(recipe)
    if recipe.adapter is not None and recipe.adapter.path is not None:
        find_adapter(Path(recipe.adapter.path))  # of the hub: small enough to be fetched here


def _check_hub(recipe: Recipe) -> None:
    """Raises ConfigError where what the model needs is neither in the cache nor, so far as can be asked, on the hub."""
    for what, path, revision in to_be_fetched(recipe.model):
        _ask_hub(what, path, revision)


def _ask_hub(what: str, path: str, revision: str | None) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{what} {path} is no folder here and not in the hub's cache, and HF_HUB_OFFLINE is set; fetch it first: "
            f"hf download {path}"
        )
    reason = why_unreachable()
    if reason:
        raise no_way_to(what, path, reason)
    try:
        HfApi().model_info(path, revision=revision, timeout=SECONDS_FOR_HUB)
    except GatedRepoError:
        raise ConfigError(f"{what} {path}: the hub wants its terms accepted; then hf auth login") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        branch = f" with revision {revision}" if revision else ""
        raise ConfigError(f"{what} {path} is no folder here, and the hub has none{branch}") from None
    except Exception:  # a mirror that answers otherwise: the rank that loads the model will know
        return


def _check_operators(recipe: Recipe, world_size: int) -> None:
    """Raises ConfigError, with doctor's advice, where an operator is to be built and no compiler can."""
    import torch

    from memdiff.doctor.compiler import OPS_CPU, OPS_GPU, judge_compiler, probe_compiler, probe_operators
    from memdiff.training.launcher import rank_environment

    environment = rank_environment(world_size)
    names = set(OPS_GPU if torch.cuda.is_available() else OPS_CPU)
    if recipe.memory.offload_optimizer is not True:
        names -= {"cpu_adam"}
    folder = environment.get("TORCH_EXTENSIONS_DIR")
    if folder is None or "missing" not in probe_operators(folder, tuple(names)).values():
        return
    finding = judge_compiler(probe_compiler())
    if finding.state == "fail" and not all(_comes_built(name) for name in names):
        operators = ", ".join(sorted(names))
        raise ConfigError(
            f"DeepSpeed's {operators} must be compiled at the first start: {finding.detail}. {finding.advice}"
        )


def _comes_built(operator: str) -> bool:
    """Whether DeepSpeed was installed with it."""
    package = importlib.util.find_spec("deepspeed")
    places = package.submodule_search_locations if package is not None else None
    return any(file for place in places or () for file in Path(place).rglob(f"{operator}*.so"))
