"""Networks from folders and hub ids by diffusers' and transformers' own loading, every weight accounted for.

A weight that a file does not hold is no error to either library: transformers leaves a random one, diffusers a random
one or one without memory (on the meta device). What they report is read here, and refused.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from memdiff.errors import ConfigError
from memdiff.models.source import no_pipeline, quiet_hub
from memdiff.models.variants import chosen_variant, variant_of, variants_in
from memdiff.runtime.state_dicts import another_shape, refuse_other_weights
from memdiff.runtime.weight_headers import kinds_of_numbers

_log = logging.getLogger(__name__)


def pipeline_folder(source: str, **options: Any) -> Path:
    """The folder itself, or where a hub id's files lie in the cache, fetched where they don't.

    `options` are those of the pipeline's `from_pretrained`: parts that are given there are not fetched.
    """
    return Path(source) if Path(source).is_dir() else Path(DiffusionPipeline.download(source, **options))


def class_of_part(index: Any, part: str) -> tuple[str, str] | None:
    """(library, class) that a pipeline's model_index.json names for one of its parts; None where it has none."""
    entry = index.get(part) if isinstance(index, Mapping) else None
    named = isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
    return (entry[0], entry[1]) if entry and named else None


def read_part(network: Any, folder: Path, part: str, *, source: str, variant: str | None, dtype: torch.dtype) -> Any:
    """`read_network` of one part of the pipeline `source`. Some old DDPMs have the files of all parts in one folder."""
    where = folder / part if (folder / part).is_dir() else folder
    return read_network(network, source, part=part, folder=where, variant=variant, dtype=dtype)


def read_network(
    network: Any,
    source: str,
    *,
    dtype: torch.dtype,
    key: str = "model.path",
    part: str | None = None,
    folder: Path | None = None,
    variant: str | None = None,
    **where: Any,
) -> Any:
    """`network.from_pretrained`, on the host in evaluation mode, with all of its weights from the files.

    `network` is a class of diffusers or transformers. Errors call it by `key`, `source` and `part`; its files lie in
    `folder` where that is another place than the folder or hub id `source`. `where` is a subfolder, a revision.
    A local folder without files of the variant is read without it, as parts of pipelines are.

    Files in fp32 are read in fp32, as pages of theirs, for half precisions too: who runs the network casts it, tensor
    by tensor on its way to the device, so that the host never holds a cast copy of the whole.

    Raises ConfigError in one line that names how many weights are missing or of another shape, and the first of them;
    also where a file is absent, damaged or no weights at all.
    """
    place = str(folder or source)
    try:
        with quiet_hub():
            options = where | _files(Path(place, where.get("subfolder") or ""), variant)
            stored = torch.float32 if _in_full(Path(place, where.get("subfolder") or ""), options["variant"]) else dtype
            loaded, report = network.from_pretrained(
                place, dtype=stored, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except ConfigError:
        raise
    except Exception as error:  # a damaged or foreign file ends in whatever exception its bytes lead to
        raise no_pipeline(source, error, key=key, part=part) from None
    check_report(loaded, report, name=f"{key} {source}" + (f": {part}" if part else ""))
    return loaded


def check_report(network: torch.nn.Module, report: Mapping[str, Any], *, name: str) -> None:
    """Raises ConfigError for weights that are missing or of another shape by `output_loading_info`.

    Tied weights and buffers that are no part of a checkpoint are not among its missing keys. Tensors that the network
    doesn't have are told in a warning only: a file may hold more than one network.
    """
    # Keys that an index of shards names and no shard holds are on no list, but have got no memory either.
    empty = [key for key, tensor in network.state_dict().items() if tensor.is_meta]
    unlike = {key: another_shape(key, got, want) for key, got, want in report["mismatched_keys"]}
    refuse_other_weights(
        name,
        type(network).__name__,
        missing=sorted({*report["missing_keys"], *empty} - set(unlike)),
        unlike=[unlike[key] for key in sorted(unlike)],
    )
    unused = _known_to_nobody(report["unexpected_keys"])
    if unused:
        _log.warning(
            "%s: %d tensors of its files are not used by %s: %s", name, len(unused), type(network).__name__, unused[0]
        )


def own_memory(network: torch.nn.Module) -> None:
    """Copies the weights out of the file that they are mapped from."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def wrong_part(source: str, part: str, wanted: str, actual_class: tuple[str, str] | None) -> ConfigError:
    """What to say of a pipeline whose part is of another class."""
    return ConfigError(
        f"model.path {source}: {part} must be a {wanted}, got {actual_class[1] if actual_class else 'none'}"
    )


def _known_to_nobody(keys: Iterable[str]) -> list[str]:
    """Less the position indices that older checkpoints hold and current modules compute."""
    return sorted(key for key in keys if not key.endswith("position_ids"))


def _files(folder: Path, variant: str | None) -> dict[str, Any]:
    """Arguments that say which files of a local folder to read; a hub id is left to the library.

    Raises ConfigError where there are weights of several variants alone, and none is chosen.
    """
    if not folder.is_dir():
        return {"variant": variant}
    variant = chosen_variant(variants_in(folder), variant, where=folder)
    options: dict[str, Any] = {"variant": variant}
    if not any(folder.glob("*.safetensors")):
        options["use_safetensors"] = False  # else diffusers speaks of an error before it reads the .bin file
    return options


def _in_full(folder: Path, variant: str | None) -> bool:
    """Whether a local folder's safetensors of the variant hold fp32, and floats of no other width."""
    files = [file for file in folder.glob("*.safetensors") if variant_of(file) == (variant,)]
    kinds = {kind for file in files for kind in kinds_of_numbers(file)}
    return {kind for kind in kinds if kind.startswith(("F", "BF"))} == {"F32"}
