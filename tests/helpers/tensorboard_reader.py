"""A folder of event files as TensorBoard itself reads it."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Events:
    """What TensorBoard would show."""

    scalars: dict[str, dict[int, float]]  # by tag and step
    images: dict[str, list[tuple[int, int, int, bytes]]]  # step, width, height, encoded
    texts: dict[str, str]


def read_events(folder: Path) -> Events:
    """Through its own accumulator, with all that it would keep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about its dependencies
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        kept = {"scalars": 0, "images": 0, "tensors": 0}
        accumulator: Any = EventAccumulator(str(folder), size_guidance=kept)
        accumulator.Reload()
    tags = accumulator.Tags()
    return Events(
        {tag: {event.step: event.value for event in accumulator.Scalars(tag)} for tag in tags["scalars"]},
        {
            tag: [(event.step, event.width, event.height, event.encoded_image_string) for event in images]
            for tag in tags["images"]
            if (images := accumulator.Images(tag)) is not None
        },
        {tag.removesuffix("/text_summary"): _text(accumulator.Tensors(tag)[-1]) for tag in tags["tensors"]},
    )


def _text(event: Any) -> str:
    """What a text summary says: a tensor of one string of bytes."""
    from tensorboard.util.tensor_util import make_ndarray

    word: Any = make_ndarray(event.tensor_proto).item()
    return word.decode()
