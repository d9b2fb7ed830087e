"""TAESD (AutoencoderTiny) as the decoder: diffusers' images, plain autograd's gradient, a fraction of the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

from memdiff.models import architectures
from memdiff.models.config import SdxlConfig, StableDiffusionConfig
from memdiff.models.load import load_policy, skeleton_policy
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.vae_decoder import LatentDecoder
from memdiff.models.vae_files import choose_vae_dtype, vae_architecture, vae_class
from tests.helpers.against_diffusers import TEXTS, diffusers_images, relative, sampled, saved_bytes
from tests.helpers.tiny import CPU, tiny_sdxl_pipeline, tiny_stable_diffusion_pipeline

quiet_libraries()

PIPELINES: Any = {
    "stable_diffusion": (StableDiffusionConfig, tiny_stable_diffusion_pipeline),
    "sdxl": (SdxlConfig, tiny_sdxl_pipeline),
}


def tiny_vae() -> AutoencoderTiny:
    """Doubles the sides once, as the tiny pipelines' own VAE does."""
    torch.manual_seed(5)
    channels: Any = (8, 8)
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    )  # fmt: skip
    return vae.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_vae().save_pretrained(folder / "vae")
    for kind, (_, pipeline) in PIPELINES.items():
        pipeline().save_pretrained(folder / kind)
    return folder


def policy_of(kind: str, folder: Path, read: Any = load_policy, **options: Any) -> Any:
    model = PIPELINES[kind][0](kind=kind, path=str(folder / kind), vae=str(folder / "vae"))
    return read(model, SamplerConfig(steps=4, eta=0.0, guidance=2.0), ModelOptions(**options), device=CPU)


@pytest.mark.parametrize("kind", PIPELINES)
def test_images_are_the_pipelines(kind: str, folder: Path) -> None:
    """diffusers' whole call with TAESD as its vae: latents go in as the UNet has them, undivided by 0.18 or 0.13."""
    policy, pipeline = policy_of(kind, folder), PIPELINES[kind][1]()
    noise, x_0 = sampled(policy)
    pipeline.vae = tiny_vae()
    latents, images = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=2.0)
    assert relative([x_0], [latents]) < 1e-5
    assert (policy.decode(x_0) - images).abs().max() < 1e-5 and images.std() > 0.01
    assert len(TEXTS) == len(images)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_gradient_is_plain_autograds(kind: str, folder: Path) -> None:
    """To 1e-5; with checkpointing bit for bit the same, from fewer kept bytes."""
    vae, x_0 = tiny_vae(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    leaf = x_0.clone().requires_grad_()
    images = (vae.decode(leaf).sample / 2 + 0.5).clamp(0, 1)  # pyright: ignore[reportAttributeAccessIssue]
    (expected,) = torch.autograd.grad(images.square().sum(), leaf)
    results, kept = [], []
    for mode in ("none", "blocks", "layers"):
        policy = policy_of(kind, folder, vae_checkpointing=mode)
        ours = x_0.clone().requires_grad_()
        kept.append(saved_bytes(lambda policy=policy, ours=ours: policy.decode(ours)))
        decoded = policy.decode(ours)
        results.append([decoded.detach(), *torch.autograd.grad(decoded.square().sum(), ours)])
    assert relative(results[0], [images.detach(), expected]) < 1e-5
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    assert max(kept[1:]) < kept[0]


def test_a_saved_pipeline_has_it(folder: Path, tmp_path: Path) -> None:
    """Full fine-tuning: the pipeline decodes with what its rewards saw, and is read again as any other."""
    policy = policy_of("stable_diffusion", folder)
    policy.save(tmp_path, {name: weight.detach() for name, weight in policy.trainable().items()})
    model = StableDiffusionConfig(kind="stable_diffusion", path=str(tmp_path))
    again = load_policy(model, SamplerConfig(steps=4, eta=0.0, guidance=2.0), ModelOptions(), device=CPU)
    assert torch.equal(policy.decode(sampled(policy)[1]), again.decode(sampled(again)[1]))


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_plan_knows_it(kind: str, folder: Path) -> None:
    """Its skeleton is the loaded network's; the public ones need no download, and take under 8 % of a VAE's FLOPs."""
    shapes = [
        {name: weight.shape for name, weight in policy_of(kind, folder, read).networks["vae"].state_dict().items()}
        for read in (load_policy, skeleton_policy)
    ]
    assert shapes[0] == shapes[1]
    own, counts = architectures.STABLE_DIFFUSION_1.vae, []
    for config in (own, vae_architecture("madebyollin/taesd", own)):
        with torch.device("meta"):
            decoder = LatentDecoder(vae_class(config).from_config(dict(config)), dtype=torch.float32)
            z = torch.empty(1, 4, 64, 64)
        with FlopCounterMode(display=False) as counter:
            assert decoder.network(z).shape == (1, 3, 512, 512)
        counts.append((counter.get_total_flops(), sum(weight.numel() for weight in decoder.network.parameters())))
    (flops, parameters), (tiny_flops, tiny_parameters) = counts
    assert tiny_parameters < 0.03 * parameters and tiny_flops < 0.08 * flops


def test_it_runs_in_half_precision() -> None:
    """TAESD of SDXL does not overflow, whatever its config leaves out."""
    model = SdxlConfig(kind="sdxl", path="a/b")
    assert choose_vae_dtype(model, architectures.TINY_VAE, torch.float16) is torch.float16
