"""Unconditional pipelines: loading, LoRA, saving for plain diffusers, rollouts whose images keep their own noise."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from memdiff.chain.noise import Noise, Stream
from memdiff.digits.paths import DIGITS_DDPM
from memdiff.errors import ConfigError, NumericError
from memdiff.models.config import AdapterConfig, DdpmConfig
from memdiff.models.ddpm import DdpmPolicy, load_ddpm
from memdiff.models.lora import inject
from memdiff.models.options import ModelOptions
from memdiff.models.policy import rollout
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from tests.helpers.tiny import CPU, tiny_policy, tiny_unet

quiet_libraries()


def load(path: str, sampler: SamplerConfig) -> DdpmPolicy:
    return load_ddpm(DdpmConfig(kind="ddpm", path=path), sampler, ModelOptions(), device=CPU)


def noise_of(policy, seed: int = 5) -> Noise:
    return Noise(seed=seed, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)


def random_weights(policy, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * 0.05 for name, p in policy.trainable().items()}


def put(policy, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.copy_(weights[name])


@pytest.mark.parametrize(
    "adapter",
    [None, AdapterConfig(rank=2), AdapterConfig(rank=2, alpha=8), AdapterConfig(rank=3, convolutions=True)],
    ids=["full", "lora", "lora-alpha", "lora-convolutions"],
)
def test_saved_model_loads_in_plain_diffusers(adapter: AdapterConfig | None, tmp_path: Path) -> None:
    """DDIMPipeline.from_pretrained of what was saved predicts what the policy predicted (LoRA merged: <= 1e-5)."""
    policy = tiny_policy(adapter=adapter)
    weights = random_weights(policy)
    policy.save(tmp_path, weights)
    put(policy, weights)
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    x, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        got, expected = pipeline.unet(x, timesteps).sample, policy.unet(x, timesteps).sample
        untrained = tiny_unet()(x, timesteps).sample
    assert (got - expected).abs().max() <= (0 if adapter is None else 1e-5)
    assert (expected - untrained).abs().max() > 1e-3


def test_peft_folder_loads_at_the_same_strength(tmp_path: Path) -> None:
    """`adapter/` beside the merged pipeline: in the base, alpha 8 at rank 2, it gives the same output."""
    policy = tiny_policy(adapter=AdapterConfig(rank=2, alpha=8))
    weights = random_weights(policy)
    policy.save(tmp_path, weights)
    put(policy, weights)
    fresh = tiny_unet().requires_grad_(False)
    inject.attach(fresh, [(tmp_path / "adapter", 1.0)])
    x, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        assert torch.equal(fresh(x, timesteps).sample, policy.unet(x, timesteps).sample)


def test_lora_starts_at_the_base_and_trains_nothing_else() -> None:
    """B starts at zero: the adapted network is the base, bit for bit; only lora_A and lora_B are trainable."""
    policy = tiny_policy(adapter=AdapterConfig(rank=2))
    x, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        assert torch.equal(policy.unet(x, timesteps).sample, tiny_unet()(x, timesteps).sample)
    names = list(policy.trainable())
    assert names and all("lora_A" in name or "lora_B" in name for name in names)


MIDDLE = ("down_blocks.2", "mid_block", "up_blocks.0")


def test_some_modules_are_trained_and_the_rest_stays() -> None:
    """The embedded model: the gradient of the chosen modules is that of training everything, the rest has none.

    Without `time_embedding` their first norms get inputs that need no gradient, which crashed torch's CPU kernel.
    """

    def gradients(*modules: str) -> dict[str, torch.Tensor]:
        policy = load(str(DIGITS_DDPM), SamplerConfig(steps=5))
        if modules:
            policy.train_only(modules)
        x = torch.randn(4, *policy.shape, generator=torch.Generator().manual_seed(2))
        parameters = policy.trainable()
        parameter_gradients = torch.autograd.grad(policy.mean(x, [0, 1, 2, 3]).sin().sum(), list(parameters.values()))
        return dict(zip(parameters, parameter_gradients, strict=True))

    every, chosen = gradients(), gradients(*MIDDLE)
    assert set(chosen) == {name for name in every if name.startswith(MIDDLE)} and len(chosen) < len(every) / 2
    flat = [
        torch.cat([parameter_gradients[name].flatten() for name in chosen]) for parameter_gradients in (chosen, every)
    ]
    assert (flat[0] - flat[1]).norm() <= 1e-5 * flat[1].norm()


def test_modules_that_are_not_there_are_told(tmp_path: Path) -> None:
    """By name, with those that are; what was trained in part is saved as a whole pipeline."""
    policy = tiny_policy()
    with pytest.raises(ConfigError, match=r"the UNet has no middle; it has conv_in, .*down_blocks.0, .*mid_block"):
        policy.train_only(["mid_block", "middle"])
    policy = tiny_policy()
    policy.train_only(["mid_block"])
    weights = random_weights(policy)
    policy.save(tmp_path, weights)
    saved, untrained = DDIMPipeline.from_pretrained(tmp_path).unet.state_dict(), tiny_unet().state_dict()
    for name, value in saved.items():
        assert torch.equal(value, weights[name] if name in weights else untrained[name]), name


def test_adapter_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layer is named to_z; there are .*to_q"):
        tiny_policy(adapter=AdapterConfig(targets=("to_z",)))
    with pytest.raises(ConfigError, match=r"holds no adapter_model.safetensors"):
        inject.attach(tiny_unet(), [(tmp_path, 1.0)])
    policy = tiny_policy(adapter=AdapterConfig(rank=2))
    weights = random_weights(policy)
    next(iter(weights.values()))[0] = float("nan")
    with pytest.raises(NumericError, match="not finite"):
        policy.save(tmp_path, weights)


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat hub layout"])
def test_loads_pipeline_folders_of_both_layouts(flat: bool, tmp_path: Path) -> None:
    """`unet/` and `scheduler/` folders, and the flat layout that google/ddpm-celebahq-256 has on the hub."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    if flat:
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            (tmp_path / "unet" / name).rename(tmp_path / name)
        (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "scheduler_config.json")
        (tmp_path / "unet").rmdir()
        (tmp_path / "scheduler").rmdir()
    policy = load(str(tmp_path), SamplerConfig(steps=10))
    assert policy.shape == (1, 8, 8) and policy.schedule.steps == 10
    assert policy.schedule.clip == 1.0  # DDPM's own default
    with torch.no_grad():
        x = torch.randn(1, 1, 8, 8)
        torch.testing.assert_close(policy.unet(x, 5).sample, tiny_unet()(x, 5).sample, rtol=0, atol=1e-6)


def test_unusable_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"google/nothing-here: no pipeline could be loaded.*hf download"):
        load("google/nothing-here", SamplerConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pipeline could be loaded"):
        load(str(tmp_path / "empty"), SamplerConfig())
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "variance")
    with pytest.raises(ConfigError, match="predicts its variance"):
        load(str(tmp_path / "variance"), SamplerConfig())


def test_a_damaged_weight_file_is_told(tmp_path: Path) -> None:
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="no pipeline could be loaded"):
        load(str(tmp_path), SamplerConfig())


def test_rollout_is_diffusers_ddim() -> None:
    """eta 0, the embedded digits: the x_0 of DDIMPipeline's own loop from the same noise, <= 1e-4 after 20 steps."""
    policy = load(str(DIGITS_DDPM), SamplerConfig(steps=20, eta=0))
    noise = noise_of(policy)
    got = rollout(policy, noise, range(4), [""] * 4, batch=4, storage=torch.float32)
    pipeline = DDIMPipeline.from_pretrained(DIGITS_DDPM)
    pipeline.scheduler.set_timesteps(20)
    x = noise.initial(range(4))
    with torch.no_grad():
        for timestep in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, timestep).sample, timestep, x, eta=0.0).prev_sample
    assert (got - x).abs().max() < 1e-4


def test_an_image_depends_on_its_number_alone() -> None:
    """At one batch shape, image 5 is the same bits alone, among others, and in another order of batches."""
    policy = tiny_policy()
    noise = noise_of(policy)
    together = rollout(policy, noise, range(8), [""] * 8, batch=4, storage=torch.float32)
    alone = rollout(policy, noise, range(5, 6), [""], batch=4, storage=torch.float32)
    rest = rollout(policy, noise, range(3, 8), [""] * 5, batch=4, storage=torch.float32)
    assert torch.equal(together[5], alone[0]) and torch.equal(together[3:], rest)


def test_activation_checkpointing_frees_memory_and_keeps_gradients(generator: torch.Generator) -> None:
    """The same gradients bit for bit, from fewer bytes saved for the backward."""
    x, saved, parameter_gradients = torch.randn(4, 1, 8, 8, generator=generator), [], []
    for checkpointing in (False, True):
        policy = tiny_policy(checkpointing=checkpointing)
        kept: list[int] = []

        def pack(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = policy.mean(x, [0, 1, 2, 3]).square().sum()
        saved.append(sum(kept))
        parameter_gradients.append(torch.autograd.grad(loss, list(policy.trainable().values())))
    assert saved[1] < 0.6 * saved[0]
    assert all(torch.equal(a, b) for a, b in zip(*parameter_gradients, strict=True))
