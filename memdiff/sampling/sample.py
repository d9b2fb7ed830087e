"""Sampling on one device: this process's block of the images, each into a PNG of its own. No DeepSpeed.

Shapes: B images of a batch, C channels, H W pixels.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from memdiff.chain.noise import Noise, Stream
from memdiff.models.finite_states import FiniteStates, decoded
from memdiff.models.load import load_policy
from memdiff.models.options import ModelOptions
from memdiff.models.pixels import to_uint8
from memdiff.models.policy import rollout
from memdiff.models.precision import DTYPES, resolve_precision
from memdiff.models.quiet import quiet_libraries
from memdiff.runtime.cuda_allocator import use_expandable_segments
from memdiff.runtime.exit_codes import guarded
from memdiff.runtime.image_files import sampled_file
from memdiff.runtime.ranks import Ranks, ranks_of_this_process
from memdiff.sampling.request import SampleRequest


def sample_block(request: SampleRequest, ranks: Ranks, advance: Callable[[int], None]) -> None:
    """Samples and writes `image_000000.png`, ... of this rank's block. `advance` is told of finished images.

    Image i's noise depends on the seed and i alone, its prompt on i alone. NumericError where an image is not finite.
    """
    quiet_libraries()
    precision = resolve_precision(request.precision, ranks.device)
    policy = load_policy(request.model, request.sampler, ModelOptions(DTYPES[precision]), device=ranks.device)
    if request.adapters:
        sources = [(Path(adapter.file), adapter.weight) for adapter in request.adapters]
        policy.attach(sources, scale=request.lora_scale, steps=request.adapter_steps)
    noise = Noise(seed=request.seed, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)
    block = ranks.block(request.num_images)
    if ranks.rank == 0:
        policy.warn_of_cuts(request.prompts)
    policy.encode(request.prompts_of(block))
    for start in range(block.start, block.stop, request.batch_size):
        images = range(start, min(start + request.batch_size, block.stop))
        prompts = request.prompts_of(images)
        states = FiniteStates()
        x_0 = rollout(
            policy, noise, images, prompts, batch=request.batch_size, storage=policy.dtype, store=states.store
        )
        states.check(policy, images)
        for image, pixels_CHW in zip(images, to_uint8(decoded(policy, x_0, images)).cpu(), strict=True):
            write_png(sampled_file(Path(request.out), image), pixels_CHW)
        advance(len(images))


def write_png(file: Path, pixels_CHW: torch.Tensor) -> None:
    """One image, grey or RGB; under its name only when it is whole."""
    pixels = pixels_CHW.permute(1, 2, 0).numpy()
    partial = file.with_suffix(".tmp")
    partial.unlink(missing_ok=True)  # a link of that name is not written through
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(partial, format="PNG")
    partial.replace(file)


if __name__ == "__main__":
    use_expandable_segments()
    guarded(
        lambda: sample_block(
            SampleRequest.model_validate_json(Path(sys.argv[1]).read_text()),
            ranks_of_this_process(),
            lambda count: None,
        )
    )
