"""SDXL policies against diffusers' own pipeline: two encoders, pooled embedding, sizes, a VAE too large for fp16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from benchmarks.recorder.models import tiny_vae
from memdiff.errors import ConfigError
from memdiff.models import architectures
from memdiff.models.config import AdapterConfig, SdxlConfig, StableDiffusionConfig
from memdiff.models.latent_files import parts_of, skeleton_parts
from memdiff.models.load import load_policy, model_of, pipeline_kind
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.models.precision import DTYPES
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.vae_files import choose_vae_dtype
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.vjp import Pieces
from tests.helpers import half_precision
from tests.helpers.against_diffusers import (
    PARTS,
    TEXTS,
    diffusers_images,
    gradients_of,
    noise_of,
    relative,
    relative_norm,
    sampled,
    saved_bytes,
    spread,
)
from tests.helpers.tiny import CPU, tiny_sdxl, tiny_sdxl_pipeline

quiet_libraries()


@pytest.mark.parametrize("negative", [None, "", "ugly"])
def test_embeddings_are_the_pipelines(negative: str | None) -> None:
    """Tokens of both encoders and the pooled embedding are encode_prompt's; without a negative prompt its embedding is
    zero, which the empty text's is not."""
    policy, pipeline = tiny_sdxl(sampler={"negative_prompt": negative}), tiny_sdxl_pipeline()
    texts = [*TEXTS, "", "x"]
    policy.encode(texts)
    with torch.no_grad():
        tokens, empty, pooled, empty_pooled = pipeline.encode_prompt(
            texts, device=CPU, negative_prompt=None if negative is None else [negative] * 4
        )
    rows = policy.conditioning(texts)
    without = policy.text.without_prompt(rows)
    assert rows.pooled_BP is not None and without.pooled_BP is not None
    assert relative([rows.tokens_BLD, rows.pooled_BP], [tokens, pooled]) < 1e-6
    assert relative([without.tokens_BLD, without.pooled_BP], [empty, empty_pooled]) < 1e-6
    assert (float(without.pooled_BP.abs().max()) == 0) == (negative is None)
    assert rows.tokens_BLD.shape[2] == 32 and rows.pooled_BP.shape == (4, 16)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("guidance", "prediction", "negative"),
    [(None, "epsilon", None), (5.0, "epsilon", None), (3.0, "v_prediction", "ugly"), (0.0, "epsilon", None)],
)
def test_chains_are_the_pipelines(eta: float, guidance: float | None, prediction: str, negative: str | None) -> None:
    """The whole call of StableDiffusionXLPipeline with DDIM from the same noise: latents and images to 1e-5."""
    policy = tiny_sdxl(eta=eta, guidance=guidance, prediction_type=prediction, sampler={"negative_prompt": negative})
    noise, x_0 = sampled(policy)
    pipeline = tiny_sdxl_pipeline(prediction_type=prediction)
    latents, images = diffusers_images(
        pipeline, noise, eta=eta, guidance_scale=1.0 if guidance is None else guidance,
        negative_prompt=[negative] * 2 if negative else None,
    )  # fmt: skip
    assert relative([x_0], [latents]) < 1e-5
    assert (policy.decode(x_0) - images).abs().max() < 1e-5 and images.std() > 0.05


def test_sizes_condition_the_prediction() -> None:
    """Images count as uncropped originals of their own side: diffusers' call agrees, and differs for another side."""
    parts = parts_of(tiny_sdxl_pipeline(), size=(32, 32))
    policy = SdxlPolicy(parts, SamplerConfig(steps=4, eta=0, guidance=2), ModelOptions(), device=CPU)
    policy.encode(TEXTS)
    assert policy.conditioning(TEXTS).sizes_BI is not None and policy.shape == (4, 16, 16)
    noise = noise_of(policy)
    x_0 = rollout(policy, noise, range(2), TEXTS, batch=2, storage=torch.float32)
    pipeline = tiny_sdxl_pipeline()
    for side, same in ((32, True), (512, False)):
        sizes = (side, side)
        latents, _ = diffusers_images(
            pipeline, noise, eta=0.0, guidance_scale=2.0, height=32, width=32, original_size=sizes, target_size=sizes
        )
        assert (relative([x_0], [latents]) < 1e-5) == same


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2, alpha=4)], ids=["full", "lora"])
def test_a_guided_steps_gradient_is_plain_autograds(adapter: AdapterConfig | None) -> None:
    """diffusers' UNet, guidance and DDIMScheduler.step, differentiated by autograd as they stand: 1e-5 relative."""
    policy = tiny_sdxl(guidance=4.0, adapter=adapter, eta=0.5)
    spread(policy)
    policy.encode(TEXTS)
    x = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(0))
    got = gradients_of(policy, x, [1, 1], TEXTS)

    pipeline = tiny_sdxl_pipeline()
    with torch.no_grad():
        tokens, empty, pooled, empty_pooled = pipeline.encode_prompt(TEXTS, device=CPU)
    pipeline.scheduler.set_timesteps(4)
    timestep, leaf = pipeline.scheduler.timesteps[1], x.clone().requires_grad_()
    added = {
        "text_embeds": torch.cat([empty_pooled, pooled]),
        "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).repeat(4, 1),
    }
    output = policy.unet(
        torch.cat([leaf, leaf]), timestep, encoder_hidden_states=torch.cat([empty, tokens]), added_cond_kwargs=added
    ).sample
    without, with_prompt = output.chunk(2)
    mean = pipeline.scheduler.step(
        without + 4.0 * (with_prompt - without), timestep, leaf, eta=0.5, variance_noise=torch.zeros_like(leaf)
    ).prev_sample
    direction = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9))
    expected = [mean.detach(), *torch.autograd.grad(mean, [leaf, *policy.trainable().values()], direction)]
    assert all(relative_norm(got[part], expected[part]) < 1e-5 for part in PARTS)


def test_memory_knobs_change_no_gradient() -> None:
    """One pass or two, feed-forwards or blocks recomputed or not: the same mean, dx and parameter gradient, to 1e-5."""
    x, gradients, kept = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [], []
    for in_two, checkpointing in (
        (False, "none"),
        (True, "none"),
        (False, "feed_forwards"),
        (False, "blocks"),
        (True, "blocks"),
    ):
        policy = tiny_sdxl(
            guidance=4.0,
            adapter=AdapterConfig(rank=2),
            guidance_passes=2 if in_two else 1,
            activation_checkpointing=checkpointing,
        )  # fmt: skip
        spread(policy)
        policy.encode(TEXTS)
        gradients.append(gradients_of(policy, x, [0, 2], TEXTS))
        leaf = x.clone().requires_grad_()
        kept.append(saved_bytes(lambda policy=policy, leaf=leaf: policy.mean(leaf, [0, 2], TEXTS)))
    for other in gradients[1:]:
        assert all(relative_norm(other[part], gradients[0][part]) < 1e-5 for part in PARTS)
    assert kept[2] < 0.9 * min(kept[:2]) and max(kept[3:]) < 0.6 * min(kept[:2])


def test_half_precision_is_near_fp32() -> None:
    """fp16 on the CPU, pulled through a piece: a guided step's gradients are as near to fp32's as torch's own (the
    penultimate hidden states, which no norm has seen, are up to 18 in size here)."""
    half, full = (
        tiny_sdxl(guidance=4.0, dtype=dtype, adapter=AdapterConfig(rank=2)) for dtype in (torch.float16, torch.float32)
    )
    spread(half)
    half_precision.put_weights(full, half)
    for policy in (half, full):
        policy.encode(TEXTS)
    x = torch.randn(2, *half.shape, generator=torch.Generator().manual_seed(0))
    half_precision.check_pieces(lambda policy: lambda z: policy.mean(z, [1, 2], TEXTS), half, full, x, torch.sign(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    tiny_sdxl_pipeline().save_pretrained(path)
    return path


def load(path: object, precision: str = "fp32", **model: Any) -> Any:
    config = SdxlConfig(kind="sdxl", path=str(path), **model)
    return load_policy(config, SamplerConfig(steps=4, guidance=3), ModelOptions(DTYPES[precision]), device=CPU)


def test_a_pipeline_folder_is_loaded(folder: Path) -> None:
    """The same chain as from the networks themselves; its kind is told, and a wrong one refused."""
    assert pipeline_kind(str(folder)) == "sdxl" and isinstance(model_of(str(folder)), SdxlConfig)
    policy, direct, images = load(folder), tiny_sdxl(guidance=3), []
    noise = noise_of(direct)
    for each in (policy, direct):
        each.encode(TEXTS)
        images.append(each.decode(rollout(each, noise, range(2), TEXTS, batch=2, storage=torch.float32)))
    assert torch.equal(*images)
    assert set(policy.networks) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    with pytest.raises(ConfigError, match=r"holds a pipeline of kind sdxl; set model\.kind: sdxl"):
        load_policy(
            StableDiffusionConfig(kind="stable_diffusion", path=str(folder)), SamplerConfig(), ModelOptions(),
            device=CPU,
        )  # fmt: skip


def test_sdxls_own_vae_is_not_run_in_fp16(folder: Path, tmp_path: Path) -> None:
    """auto: fp32, where its config says force_upcast; fp16 by name is refused with the way out, and taken for a VAE
    that is made for it. bf16 overflows no sooner than fp32."""

    def dtype_of(**model: Any) -> torch.dtype:
        return load(folder, precision="fp16", **model).networks["vae"].decoder.conv_in.weight.dtype

    assert dtype_of() is torch.float32
    with pytest.raises(ConfigError, match=r"overflows in fp16.*model\.vae: madebyollin/sdxl-vae-fp16-fix"):
        dtype_of(vae_precision="fp16")
    tiny_vae(force_upcast=False, scaling_factor=0.13025).save_pretrained(tmp_path)
    assert dtype_of(vae=str(tmp_path)) is dtype_of(vae=str(tmp_path), vae_precision="fp16") is torch.float16
    own = SdxlConfig(kind="sdxl", path=str(folder))
    assert choose_vae_dtype(own, {}, torch.bfloat16) is torch.bfloat16
    assert choose_vae_dtype(own, {}, torch.float16) is torch.float32  # the key is true where it is missing


def test_a_normalised_latent_space_is_undone() -> None:
    """latents_mean and latents_std of a VAE's config, as the pipeline has it."""
    pipeline = tiny_sdxl_pipeline()
    pipeline.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])
    policy = SdxlPolicy(parts_of(pipeline), SamplerConfig(steps=4, eta=0), ModelOptions(), device=CPU)
    noise, x_0 = sampled(policy)
    _, images = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=1.0)
    assert (policy.decode(x_0) - images).abs().max() < 1e-5


def test_full_fine_tuning_is_saved_as_a_pipeline(tmp_path: Path) -> None:
    """StableDiffusionXLPipeline.from_pretrained makes the policy's own images from it."""
    policy = tiny_sdxl(eta=0.0, guidance=3.0)
    spread(policy)
    policy.save(tmp_path, {name: p.detach().clone() for name, p in policy.trainable().items()})
    noise, x_0 = sampled(policy)
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    latents, images = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=3.0)
    assert relative([x_0], [latents]) < 1e-5 and (policy.decode(x_0) - images).abs().max() < 1e-5


def test_lora_is_saved_for_load_lora_weights(tmp_path: Path) -> None:
    """alpha 8 at rank 2: plain diffusers loads it at the same strength and makes the same images."""
    policy = tiny_sdxl(eta=0.0, guidance=3.0, adapter=AdapterConfig(rank=2, alpha=8))
    spread(policy)
    policy.save(tmp_path, {name: p.detach().clone() for name, p in policy.trainable().items()})
    noise, x_0 = sampled(policy)
    pipeline = tiny_sdxl_pipeline()
    pipeline.load_lora_weights(tmp_path)
    latents, _ = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=3.0)
    assert relative([x_0], [latents]) < 1e-5


def test_parameter_counts_are_the_public_ones() -> None:
    """SDXL base 1.0, on the meta device."""
    with torch.device("meta"):
        parts = skeleton_parts(architectures.SDXL_BASE)
    networks = {"unet": parts.unet, "vae": parts.vae, **parts.text_encoders}
    assert {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()} == {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    }  # fmt: skip


@pytest.mark.slow
def test_the_real_unet_takes_a_piece() -> None:
    """SDXL's own UNet with random weights and LoRA, images of 64 x 64 pixels, guided in two passes, bf16: one pull.

    The text encoders are two layers deep here; nothing of the UNet is.
    """
    shallow = tuple({**config, "num_hidden_layers": 2} for config in architectures.SDXL_BASE.text_encoders)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # 5 GB of weights; in fp32 they would be 10 before they are cast
    try:
        parts = skeleton_parts(replace(architectures.SDXL_BASE, text_encoders=shallow), size=(64, 64))
    finally:
        torch.set_default_dtype(torch.float32)
    options = ModelOptions(torch.bfloat16, AdapterConfig(rank=4), activation_checkpointing="blocks", guidance_passes=2)
    policy = SdxlPolicy(parts, SamplerConfig(steps=50, guidance=5), options, device=CPU)
    policy.encode(["a cat"])
    parameters = list(policy.trainable().values())
    assert sum(p.numel() for p in parameters) == 5_806_080  # LoRA r=4 on the attention of the UNet
    sums = Gradients(parameters)
    x = torch.randn(1, *policy.shape).requires_grad_()
    mean, pull = Pieces(sums).vjp(lambda z: policy.mean(z, [0], ["a cat"]), x)
    dx = pull(torch.ones_like(mean))
    assert policy.shape == (4, 8, 8) and dx is not None and dx.isfinite().all() and float(sums.max_abs()) > 0
