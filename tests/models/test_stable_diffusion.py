"""Stable Diffusion policies against diffusers' own pipeline and plain autograd; VAE, guidance, adapters, files."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.recorder.models import tiny_conditioned_unet, tiny_vae
from memdiff.chain.ddim import log_prob, step_sigma
from memdiff.errors import ConfigError, NumericError
from memdiff.models import architectures, text_encoders
from memdiff.models.config import ActivationCheckpointing, AdapterConfig, StableDiffusionConfig
from memdiff.models.latent_files import parts_of, skeleton_parts
from memdiff.models.load import load_policy, pipeline_kind
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.models.precision import DTYPES
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.stable_diffusion import StableDiffusionPolicy
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import cast_and_place
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
from tests.helpers.tiny import CPU, tiny_stable_diffusion, tiny_stable_diffusion_pipeline, tiny_unet

quiet_libraries()


def test_embeddings_are_the_pipelines() -> None:
    """Bit for bit encode_prompt's, for prompts, the empty prompt and a text that is cut off."""
    policy, pipeline = tiny_stable_diffusion(), tiny_stable_diffusion_pipeline()
    texts = [*TEXTS, "", "x", *TEXTS]
    policy.encode(texts)
    with torch.no_grad():
        expected, empty = pipeline.encode_prompt(texts, CPU, 1, True)
    rows = policy.conditioning(texts)
    assert (rows.tokens_BLD - expected).abs().max() < 1e-6 and rows.pooled_BP is None
    assert (policy.text.without_prompt(rows).tokens_BLD - empty).abs().max() < 1e-6
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_prompts_are_encoded_once_and_encoders_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the encoder for the new texts only; it comes to the device before, and after it the weights are those
    that waited on the host, untouched."""
    policy, moves, runs = tiny_stable_diffusion(), [], []

    def watched(network: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        moves.append(str(device))
        cast_and_place(network, dtype, device)
        for weight in network.parameters():
            weight.data = weight.data.clone()  # on a device they lie elsewhere

    monkeypatch.setattr(text_encoders, "cast_and_place", watched)
    policy.device = policy.text.device = torch.device("cpu", 0)
    encoder = policy.networks["text_encoder"]
    encoder.register_forward_hook(lambda *hook_arguments: runs.append(len(hook_arguments[1][0])))
    waiting = [weight.data_ptr() for weight in encoder.parameters()]
    policy.encode(TEXTS)
    policy.encode([TEXTS[1], "", TEXTS[0]])
    assert moves == ["cpu:0"] and runs == [text_encoders.ENCODE_BATCH]
    assert [weight.data_ptr() for weight in encoder.parameters()] == waiting
    policy.encode([*TEXTS, "new"])
    assert moves == ["cpu:0"] * 2 and len(runs) == 2


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("guidance", "prediction", "negative"),
    [(None, "epsilon", None), (5.0, "epsilon", None), (3.0, "v_prediction", "ugly"), (1.0, "v_prediction", None),
     (0.5, "epsilon", None), (0.0, "v_prediction", "ugly")],
)  # fmt: skip
def test_chains_are_the_pipelines(eta: float, guidance: float | None, prediction: str, negative: str | None) -> None:
    """The whole call of StableDiffusionPipeline with DDIM from the same noise: latents and images to 1e-5."""
    policy = tiny_stable_diffusion(
        eta=eta, guidance=guidance, prediction_type=prediction, sampler={"negative_prompt": negative}
    )
    noise, x_0 = sampled(policy)
    pipeline = tiny_stable_diffusion_pipeline(prediction_type=prediction)
    latents, images = diffusers_images(
        pipeline, noise, eta=eta, guidance_scale=1.0 if guidance is None else guidance,
        negative_prompt=[negative] * 2 if negative else None,
    )  # fmt: skip
    assert relative([x_0], [latents]) < 1e-5
    assert (policy.decode(x_0) - images).abs().max() < 1e-5 and images.std() > 0.05


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2, alpha=4)], ids=["full", "lora"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_guided_steps_gradient_is_plain_autograds(adapter: AdapterConfig | None, prediction: str) -> None:
    """diffusers' UNet, guidance and DDIMScheduler.step, differentiated by autograd as they stand: 1e-5 relative."""
    policy = tiny_stable_diffusion(guidance=4.0, prediction_type=prediction, adapter=adapter, eta=0.5)
    spread(policy)
    policy.encode(TEXTS)
    x, step = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(0)), 1
    got = gradients_of(policy, x, [step] * 2, TEXTS)

    pipeline = tiny_stable_diffusion_pipeline(prediction_type=prediction)
    with torch.no_grad():
        prompt, empty = pipeline.encode_prompt(TEXTS, CPU, 1, True)
    pipeline.scheduler.set_timesteps(4)
    timestep, leaf = pipeline.scheduler.timesteps[step], x.clone().requires_grad_()
    output = policy.unet(torch.cat([leaf, leaf]), timestep, encoder_hidden_states=torch.cat([empty, prompt])).sample
    without, with_prompt = output.chunk(2)
    guided = without + 4.0 * (with_prompt - without)
    mean = pipeline.scheduler.step(
        guided, timestep, leaf, eta=0.5, variance_noise=torch.zeros_like(leaf)
    ).prev_sample  # fmt: skip
    direction = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9))
    expected = [mean.detach(), *torch.autograd.grad(mean, [leaf, *policy.trainable().values()], direction)]
    assert len(got) > 10 and relative(got, expected) < 1e-5


def test_one_pass_or_two_is_the_same() -> None:
    """Guidance as one call of 2B rows and as two of B rows: mean, dx and parameter gradient to 1e-5 relative."""
    x, gradients, calls = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [], []
    for in_two in (False, True):
        policy = tiny_stable_diffusion(guidance=6.0, guidance_passes=2 if in_two else 1, adapter=AdapterConfig(rank=2))
        spread(policy)
        policy.encode(TEXTS)
        policy.unet.register_forward_hook(lambda *hook_arguments: calls.append(len(hook_arguments[1][0])))
        gradients.append(gradients_of(policy, x, [0, 2], TEXTS))
    assert calls == [4, 2, 2]
    assert all(relative_norm(gradients[0][part], gradients[1][part]) < 1e-5 for part in PARTS)


@pytest.mark.parametrize("guidance", [None, 1.0, 0.5, 0.0])
def test_without_guidance_there_is_no_second_branch(guidance: float | None) -> None:
    policy, calls = tiny_stable_diffusion(guidance=guidance), []
    policy.encode(TEXTS)
    policy.unet.register_forward_hook(lambda *hook_arguments: calls.append(len(hook_arguments[1][0])))
    policy.mean(torch.zeros(2, *policy.shape), [0, 0], TEXTS)
    assert calls == [2]


def test_rows_stand_at_steps_and_prompts_of_their_own() -> None:
    """A row's mean and x0 are those of the row alone: nothing leaks between rows, steps or texts."""
    policy = tiny_stable_diffusion(guidance=3.0)
    policy.encode(TEXTS)
    x = torch.randn(3, *policy.shape, generator=torch.Generator().manual_seed(0))
    steps, texts = [3, 0, 2], [TEXTS[0], TEXTS[1], ""]
    with torch.no_grad():
        for call in (policy.mean, policy.x0, policy.predict):
            alone = torch.cat([call(x[i : i + 1], [steps[i]], [texts[i]]) for i in range(3)])
            assert relative([call(x, steps, texts)], [alone]) < 1e-5
        assert (policy.mean(x, steps, texts) - policy.mean(x, steps, texts[::-1])).abs().max() > 1e-3


def test_vae_checkpointing_changes_memory_alone() -> None:
    """none, blocks, layers: the same images and the same gradient bit for bit, from ever fewer kept bytes."""
    x_0, images_and_gradients, kept = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [], []
    for mode in ("none", "blocks", "layers"):
        policy = tiny_stable_diffusion(vae_checkpointing=mode)
        leaf = x_0.clone().requires_grad_()
        kept.append(saved_bytes(lambda policy=policy, leaf=leaf: policy.decode(leaf)))
        images = policy.decode(leaf)
        images_and_gradients.append([images.detach(), *torch.autograd.grad(images.square().sum(), leaf)])
    with torch.no_grad():
        reference = tiny_stable_diffusion_pipeline().vae.decode(x_0 / 0.18215).sample
    assert relative([images_and_gradients[0][0]], [(reference / 2 + 0.5).clamp(0, 1)]) < 1e-6
    for other in images_and_gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(images_and_gradients[0], other, strict=True))
    assert kept[2] < kept[1] < 0.4 * kept[0]


def test_images_may_be_decoded_one_at_a_time() -> None:
    """Batches of one or two, the last filled up: the same images and gradients as all at once, to rounding."""
    x_0, images_and_gradients, calls = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [], []
    for batch in (3, 1, 2):
        policy, leaf = tiny_stable_diffusion(decode_batch=batch), x_0.clone().requires_grad_()
        policy.networks["vae"].register_forward_hook(lambda *hook_arguments: calls.append(len(hook_arguments[1][0])))
        images = policy.decode(leaf)
        images_and_gradients.append([images.detach(), *torch.autograd.grad(images.square().sum(), leaf)])
    assert (
        calls == [3, 1, 1, 1, 2, 2]
        and max(relative(other, images_and_gradients[0]) for other in images_and_gradients[1:]) < 1e-5
    )


def test_images_that_are_not_finite_are_told() -> None:
    """The VAE is named where it is at fault, and the latent where that is."""
    policy = tiny_stable_diffusion(vae_dtype=torch.float16)
    with torch.no_grad():
        policy.decoder.network.decoder.conv_out.weight.mul_(2e5)
        with pytest.raises(NumericError, match=r"VAE in float16 decodes to images that are not finite; .*fp32"):
            policy.decode(torch.randn(1, *policy.shape) * 100)
        with pytest.raises(NumericError, match="the denoised latent is not finite"):
            policy.decode(torch.full((1, *policy.shape), float("nan")))


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)], ids=["full", "lora"])
def test_activation_checkpointing_changes_memory_alone(adapter: AdapterConfig | None) -> None:
    """In eval mode, guided: the same gradients bit for bit, each way from fewer kept bytes than the one before."""
    x, gradient_lists, kept = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), [], []
    for checkpointing in get_args(ActivationCheckpointing):
        policy = tiny_stable_diffusion(guidance=4.0, adapter=adapter, activation_checkpointing=checkpointing)
        spread(policy)
        policy.encode(TEXTS)
        assert not policy.unet.training
        leaf = x.clone().requires_grad_()
        kept.append(saved_bytes(lambda policy=policy, leaf=leaf: policy.mean(leaf, [1, 1], TEXTS)))
        gradient_lists.append(gradients_of(policy, x, [1, 1], TEXTS))
    assert all(
        torch.equal(a, b) for others in gradient_lists[1:] for a, b in zip(gradient_lists[0], others, strict=True)
    )
    assert kept[1] < 0.9 * kept[0] and kept[2] < 0.6 * kept[0]


@pytest.mark.parametrize("checkpointing", get_args(ActivationCheckpointing))
def test_an_adapter_acts_in_its_window_alone(checkpointing: ActivationCheckpointing) -> None:
    """Outside [1, 3) the policy is the base; a graph kept from inside is right although the adapter has since been
    turned off."""
    policy = tiny_stable_diffusion(
        adapter=AdapterConfig(rank=2, steps=(1, 3)), activation_checkpointing=checkpointing, guidance=2.0
    )
    base, always = (
        tiny_stable_diffusion(guidance=2.0),
        tiny_stable_diffusion(guidance=2.0, adapter=AdapterConfig(rank=2)),
    )
    spread(policy)
    spread(always)
    for each in (policy, base, always):
        each.encode(TEXTS)
    x = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(0))
    assert [policy.trains(step) for step in range(4)] == [False, True, True, False]
    with torch.no_grad():
        for step in range(4):
            expected = (always if policy.trains(step) else base).mean(x, [step] * 2, TEXTS)
            assert torch.equal(policy.mean(x, [step] * 2, TEXTS), expected)
    inside = policy.mean(x, [1, 2], TEXTS)
    policy.mean(x, [0, 3], TEXTS)  # off
    got = torch.autograd.grad(inside.square().sum(), list(policy.trainable().values()))
    reference = always.mean(x, [1, 2], TEXTS)
    expected = torch.autograd.grad(reference.square().sum(), list(always.trainable().values()))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert policy.trains(1)
    with pytest.raises(AssertionError, match="disagree"):
        policy.mean(x, [0, 1], TEXTS)


@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)], ids=["full", "lora"])
def test_base_is_the_model_before_training(adapter: AdapterConfig | None) -> None:
    """Inside `base` the untrained network, differentiable in x, whose graph outlives the exit; outside the trained."""
    untrained = tiny_stable_diffusion(guidance=3.0)
    policy = tiny_stable_diffusion(guidance=3.0, adapter=adapter, keep_base=True, activation_checkpointing="blocks")
    spread(policy)
    for each in (untrained, policy):
        each.encode(TEXTS)
    x = torch.randn(2, *policy.shape, generator=torch.Generator().manual_seed(0))
    before, leaf = policy.mean(x, [1, 1], TEXTS).detach(), x.clone().requires_grad_()
    with policy.base():
        inside = policy.mean(leaf, [1, 1], TEXTS)
    after = policy.mean(x, [1, 1], TEXTS).detach()
    other = x.clone().requires_grad_()
    expected = untrained.mean(other, [1, 1], TEXTS)
    assert torch.equal(inside, expected) and torch.equal(before, after) and not torch.equal(inside, after)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), at)[0] for y, at in ((inside, leaf), (expected, other))))
    if adapter is None:
        with pytest.raises(ConfigError, match="was not kept"), tiny_stable_diffusion().base():
            pass


def test_half_precision_is_near_fp32() -> None:
    """fp16 weights on the CPU, pulled through a piece with its scaling: gradients of a guided step and of the decoder,
    1e-6 in size, below fp16's normal range, are as near to fp32's as torch's own at a size that suits fp16."""
    half, full = (
        tiny_stable_diffusion(guidance=4.0, dtype=dtype, adapter=AdapterConfig(rank=2))
        for dtype in (torch.float16, torch.float32)
    )
    spread(half)
    half_precision.put_weights(full, half)
    for policy in (half, full):
        policy.encode(TEXTS)
    x = torch.randn(2, *half.shape, generator=torch.Generator().manual_seed(0))

    def step(policy: Any) -> Any:
        return lambda z: policy.mean(z, [1, 2], TEXTS)

    half_precision.check_pieces(step, half, full, x, torch.sign(x))
    half_precision.check_pieces(lambda policy: policy.decode, half, full, x, torch.ones(2, 3, 16, 16))


def test_log_probs_are_those_of_the_chain() -> None:
    """REINFORCE's density, eta 1: log p of a sampled transition by hand, and its gradient is not zero."""
    policy = tiny_stable_diffusion(guidance=2.0, adapter=AdapterConfig(rank=2))
    policy.encode(TEXTS)
    states: dict[int, torch.Tensor] = {}
    noise = noise_of(policy)
    rollout(
        policy, noise, range(2), TEXTS, batch=2, storage=torch.float32,
        store=lambda step, rows, x: states.__setitem__(step, x.clone()),
    )  # fmt: skip
    mean = policy.mean(states[1], [1, 1], TEXTS)
    sigma = step_sigma([1, 1], policy.schedule, mean)
    got = log_prob(states[2], mean, sigma, reduction="mean")
    z = noise.step(range(2), 1)  # x_s = mean + sigma z
    constant = sigma.flatten().log() + 0.5 * torch.log(torch.tensor(2 * torch.pi))
    assert relative([got], [-0.5 * z.square().flatten(1).mean(1) - constant]) < 1e-4
    assert max(float(g.abs().max()) for g in torch.autograd.grad(got.sum(), list(policy.trainable().values()))) > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    tiny_stable_diffusion_pipeline().save_pretrained(path)
    return path


def load(path: object, sampler: SamplerConfig | None = None, precision: str = "fp32", **model: Any) -> Any:
    config = StableDiffusionConfig(kind="stable_diffusion", path=str(path), **model)
    return load_policy(config, sampler or SamplerConfig(steps=4), ModelOptions(DTYPES[precision]), device=CPU)


def test_a_pipeline_folder_is_loaded(folder: Path) -> None:
    """The same chain as from the networks themselves; another resolution; bf16 and fp16 cast once."""
    assert pipeline_kind(str(folder)) == "stable_diffusion"
    policy, direct = load(folder), tiny_stable_diffusion()
    noise, images = noise_of(direct), []
    for each in (policy, direct):
        each.encode(TEXTS)
        images.append(each.decode(rollout(each, noise, range(2), TEXTS, batch=2, storage=torch.float32)))
    assert torch.equal(*images) and images[0].shape == (2, 3, 16, 16)
    assert load(folder, resolution=32).shape == (4, 16, 16)
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = load(folder, precision=precision)
        assert {p.dtype for network in half.networks.values() for p in network.parameters()} == {dtype}
    assert (
        load(folder, precision="fp16", vae_precision="fp32").networks["vae"].decoder.conv_in.weight.dtype
        is torch.float32
    )
    assert set(policy.networks) == {"unet", "vae", "text_encoder"}


def test_weight_variants_are_read(folder: Path, tmp_path: Path) -> None:
    """variant: fp16 reads the files of that name, and so does no variant where there are no others."""
    pipeline = tiny_stable_diffusion_pipeline().to(torch.float16)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    for policy in (load(tmp_path, variant="fp16"), load(tmp_path)):
        assert policy.unet.conv_in.weight.dtype is torch.float32
        assert torch.equal(policy.unet.conv_in.weight, load(folder).unet.conv_in.weight.half().float())


def test_another_vae_stands_in(folder: Path, tmp_path: Path) -> None:
    """model.vae: its decoder is used, and its name is told where it fails."""
    torch.manual_seed(5)
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    policy = load(folder, vae=str(tmp_path / "vae"))
    assert torch.equal(policy.networks["vae"].decoder.conv_in.weight, vae.decoder.conv_in.weight)
    assert str(tmp_path / "vae") in policy.decoder.name
    with pytest.raises(ConfigError, match=r"model.vae nobody/nothing: no pipeline could be loaded"):
        load(folder, vae="nobody/nothing")


def test_unusable_models_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    pipeline = tiny_stable_diffusion_pipeline()
    pipeline.unet = tiny_conditioned_unet(in_channels=9)
    pipeline.save_pretrained(tmp_path / "inpainting")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    cases = [
        (lambda: load("nobody/nothing-here"), "no pipeline could be loaded"),
        (lambda: load(tmp_path / "empty"), "no pipeline could be loaded"),
        (lambda: load(tmp_path / "foreign"), "class FluxPipeline; memdiff takes .*StableDiffusionPipeline"),
        (lambda: load(tmp_path / "ddpm"), "holds a pipeline of kind ddpm; set model.kind: ddpm"),
        (lambda: load(tmp_path / "inpainting"), "takes 9 channels .* not inpainting"),
        (lambda: load(folder, resolution=17), "model.resolution must be a multiple of 2 for this model, got 17"),
        (lambda: tiny_stable_diffusion(adapter=AdapterConfig(targets=("to_z",))), "no layer is named to_z; there are"),
    ]
    for call, said in cases:
        with pytest.raises(ConfigError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checkpointing", ["feed_forwards", "blocks"])
def test_full_fine_tuning_is_saved_as_a_pipeline(checkpointing: ActivationCheckpointing, tmp_path: Path) -> None:
    """StableDiffusionPipeline.from_pretrained makes the policy's own images from it."""
    policy = tiny_stable_diffusion(eta=0.0, guidance=3.0, activation_checkpointing=checkpointing)
    weights = {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in policy.trainable().items()}
    policy.save(tmp_path, weights)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.copy_(weights[name])
    noise, x_0 = sampled(policy)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path)
    latents, images = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=3.0)
    assert relative([x_0], [latents]) < 1e-5 and (policy.decode(x_0) - images).abs().max() < 1e-5


def test_lora_is_saved_for_load_lora_weights(tmp_path: Path) -> None:
    """alpha 8 at rank 2: plain diffusers loads it at the same strength and makes the same images."""
    policy = tiny_stable_diffusion(eta=0.0, guidance=3.0, adapter=AdapterConfig(rank=2, alpha=8))
    spread(policy)
    policy.save(tmp_path, {name: p.detach().clone() for name, p in policy.trainable().items()})
    noise, x_0 = sampled(policy)
    pipeline = tiny_stable_diffusion_pipeline()
    untrained, _ = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=3.0)
    pipeline.load_lora_weights(tmp_path)
    latents, _ = diffusers_images(pipeline, noise, eta=0.0, guidance_scale=3.0)
    assert relative([x_0], [latents]) < 1e-5 < 1e-2 < relative([x_0], [untrained])


def test_parameter_counts_are_the_public_ones() -> None:
    """Stable Diffusion 1.4 and 1.5, on the meta device."""
    with torch.device("meta"):
        parts = skeleton_parts(architectures.STABLE_DIFFUSION_1)
    count = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in (("unet", parts.unet), ("vae", parts.vae), *parts.text_encoders.items())
    }
    assert count == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


@pytest.mark.slow
def test_the_real_unet_takes_a_piece() -> None:
    """Stable Diffusion 1.5's own UNet with random weights and LoRA, images of 64 x 64 pixels, guided, fp32: one pull.
    About 4 GB and a minute."""
    torch.manual_seed(0)
    parts = skeleton_parts(architectures.STABLE_DIFFUSION_1, size=(64, 64))
    options = ModelOptions(adapter=AdapterConfig(rank=4), activation_checkpointing="blocks")
    policy = StableDiffusionPolicy(parts, SamplerConfig(steps=50, guidance=7.5), options, device=CPU)
    assert policy.shape == (4, 8, 8)
    policy.encode(["a cat"])
    parameters = list(policy.trainable().values())
    assert sum(p.numel() for p in parameters) == 797_184  # LoRA r=4 on the attention of the UNet
    sums = Gradients(parameters)
    x = torch.randn(1, *policy.shape).requires_grad_()
    mean, pull = Pieces(sums).vjp(lambda z: policy.mean(z, [0], ["a cat"]), x)
    dx = pull(torch.ones_like(mean))
    assert dx is not None and dx.isfinite().all() and float(sums.max_abs()) > 0


def test_parts_come_from_a_pipeline() -> None:
    """They are its own modules, not copies."""
    pipeline = tiny_stable_diffusion_pipeline()
    parts = parts_of(pipeline)
    assert parts.unet is pipeline.unet and parts.text_encoders == {"text_encoder": pipeline.text_encoder}
    assert list(parts.tokenizers) == ["tokenizer"] and not parts.zero_negative
