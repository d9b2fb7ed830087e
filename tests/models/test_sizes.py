"""Images that are not square: chains, gradients, conditioning and files are diffusers' and plain autograd's."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler
from pydantic import ValidationError

from memdiff.errors import ConfigError
from memdiff.models.architectures import STABLE_DIFFUSION_1
from memdiff.models.config import DdpmConfig, SdxlConfig, StableDiffusionConfig
from memdiff.models.latent import latent_shape
from memdiff.models.latent_files import parts_of, skeleton_parts
from memdiff.models.load import load_policy, skeleton_policy
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.stable_diffusion import StableDiffusionPolicy
from memdiff.planner.blank import blank_policy
from memdiff.reporting.grid import GAP, SMALLEST_TILE, image_grid
from memdiff.rewards.clip import fit_square
from memdiff.sampling.request import make_request
from tests.helpers.against_diffusers import TEXTS, diffusers_images, noise_of, relative
from tests.helpers.tiny import CPU, tiny_sdxl_pipeline, tiny_stable_diffusion_pipeline, tiny_unet

quiet_libraries()

SIZE = (16, 24)  # height and width in pixels
KINDS: Any = {
    "sd": (StableDiffusionPolicy, tiny_stable_diffusion_pipeline),
    "sdxl": (SdxlPolicy, tiny_sdxl_pipeline),
}


def policy_of(kind: str, **sampler: Any) -> Any:
    policy_class, pipeline = KINDS[kind]
    settings = SamplerConfig(steps=4, **sampler)
    policy = policy_class(parts_of(pipeline(), size=SIZE), settings, ModelOptions(), device=CPU)
    policy.encode(TEXTS)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_chains_are_the_pipelines(kind: str) -> None:
    """The whole call of diffusers' pipeline at this height and width; SDXL told of its size, by its own default."""
    policy = policy_of(kind, eta=0.0, guidance=2.0)
    assert policy.shape == (4, 8, 12) and policy.image_size == SIZE
    noise = noise_of(policy)
    x_0 = rollout(policy, noise, range(2), TEXTS, batch=2, storage=torch.float32)
    latents, images = diffusers_images(
        KINDS[kind][1](), noise, eta=0.0, guidance_scale=2.0, height=SIZE[0], width=SIZE[1]
    )
    assert relative([x_0], [latents]) < 1e-5
    assert images.shape == (2, 3, *SIZE) and (policy.decode(x_0) - images).abs().max() < 1e-5
    if kind == "sdxl":
        assert policy.conditioning(TEXTS).sizes_BI.tolist() == [[16, 24, 0, 0, 16, 24]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_steps_gradient_is_plain_autograds(kind: str) -> None:
    """Through the decoder to a state: diffusers' own decoder, differentiated as it stands."""
    policy, vae = policy_of(kind), KINDS[kind][1]().vae
    leaf = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    direction = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad(policy.decode(leaf), leaf, direction)
    images = (vae.decode(leaf / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    (expected,) = torch.autograd.grad(images, leaf, direction)
    assert relative([got], [expected]) < 1e-5


def test_an_unconditional_models_size_is_saved_with_it(tmp_path: Path) -> None:
    """model.height and width of a UNet2DModel; plain diffusers then makes images of that size."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "base")
    model = DdpmConfig(kind="ddpm", path=str(tmp_path / "base"), height=12, width=8)
    policy = load_policy(model, SamplerConfig(steps=2, eta=0), ModelOptions(), device=CPU)
    assert policy.shape == (1, 12, 8)
    assert skeleton_policy(model, SamplerConfig(steps=2), ModelOptions(), device=CPU).shape == (1, 12, 8)
    policy.save(tmp_path / "out", {name: weight.detach() for name, weight in policy.trainable().items()})
    pipeline: Any = DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 12, 8, 1)
    wrong = DdpmConfig(kind="ddpm", path=str(tmp_path / "base"), width=9)
    with pytest.raises(ConfigError, match=r"^model.width must be a multiple of 2 for this model, got 9$"):
        load_policy(wrong, SamplerConfig(steps=2), ModelOptions(), device=CPU)


@pytest.mark.parametrize(("sizes", "said"), [
    ({"resolution": 64, "width": 64}, "resolution is the side of square images; give it, or height and width"),
    ({"height": 4}, "greater than or equal to 8"),
    ({"width": 5000}, "less than or equal to 4096"),
])  # fmt: skip
def test_sizes_that_are_none(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SdxlConfig(kind="sdxl", path="a/b", **sizes)  # pyright: ignore[reportArgumentType]


def test_one_side_may_be_the_models_own() -> None:
    model = StableDiffusionConfig(kind="stable_diffusion", path="runwayml/stable-diffusion-v1-5", width=768)
    with torch.device("meta"):
        parts = skeleton_parts(STABLE_DIFFUSION_1, size=model.size)
    assert latent_shape(parts) == ((4, 64, 96), (512, 768))


def test_sampling_at_another_size(tmp_path: Path) -> None:
    """--height and --width take the place of the recipe's; a model that ships has one size."""
    tiny_stable_diffusion_pipeline().save_pretrained(tmp_path / "sd")

    def request(source: str, **options: Any) -> Any:
        chosen: dict[str, Any] = dict.fromkeys(
            ("batch_size", "steps", "eta", "guidance", "prompts", "lora_scale", "adapter_steps", "out")
        )
        chosen |= {"best": False, "num_images": 1, "seed": 0, "prompt": "a", "mix": (), "precision": "auto"}
        return make_request(source, **chosen | options)

    assert request(str(tmp_path / "sd"), height=24).model.size == (24, None)
    assert request(str(tmp_path / "sd"), height=24, width=16).model.size == (24, 16)
    with pytest.raises(ConfigError, match="height: Input should be greater than or equal to 8, got 3"):
        request(str(tmp_path / "sd"), height=3)
    with pytest.raises(ConfigError, match="digits_text makes images of one size alone"):
        request("digits_text", height=24)


def test_grids_rewards_and_plans_take_them() -> None:
    """Tiles keep their sides' ratio; CLIP's shortest side is resized and the middle cut, at a height of 16 and 24 wide;
    a plan's blank images have the size."""
    tiles = image_grid((torch.rand(3, *SIZE, 3) * 255).byte().numpy(), columns=3)
    factor = math.ceil(SMALLEST_TILE / min(SIZE))
    assert tiles.size == (3 * (SIZE[1] * factor + GAP) - GAP, SIZE[0] * factor)
    ramp = torch.arange(24.0).expand(1, 3, 16, 24) / 24
    assert torch.equal(fit_square(ramp, 16, "crop"), ramp[..., 4:20])
    policy = policy_of("sd")
    blank_policy(policy)
    assert policy.decode(torch.zeros(2, *policy.shape)).shape == (2, 3, *SIZE)
