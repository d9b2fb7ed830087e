"""LoRA: dW scaled and mixed exactly, windows of steps, files that plain diffusers and plain peft load."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import _collate_lora_metadata
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from memdiff.chain.noise import Noise, Stream
from memdiff.errors import ConfigError, NumericError
from memdiff.models.config import AdapterConfig
from memdiff.models.lora import inject
from memdiff.models.lora.files import DIFFUSERS_KEY, plain_name
from memdiff.models.lora.names import DIFFUSERS_NAME, KOHYA_NAME, PEFT_NAME
from memdiff.models.policy import rollout
from memdiff.models.quiet import quiet_libraries
from memdiff.recipe.recipe import Recipe
from tests.helpers.tiny import (
    tiny_policy,
    tiny_sdxl,
    tiny_sdxl_pipeline,
    tiny_stable_diffusion,
    tiny_stable_diffusion_pipeline,
    tiny_unet,
)

quiet_libraries()
ATTENTION = AdapterConfig(rank=2, alpha=8)
EVERYTHING = AdapterConfig(rank=3, alpha=1.5, convolutions=True)
TIMESTEPS = torch.tensor([3, 800])


def random_weights(policy, seed: int = 1, std: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * std for name, p in policy.trainable().items()}


def put(policy, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            parameter.copy_(weights[name])


def saved(folder: Path, adapter: AdapterConfig, seed: int = 1) -> tuple[Path, dict[str, torch.Tensor]]:
    """(A PEFT folder of random weights for `tiny_unet`, those weights)."""
    policy = tiny_policy(adapter=adapter)
    weights = random_weights(policy, seed)
    inject.save(policy.unet, adapter, folder, weights, chain_steps=policy.schedule.steps)
    return folder, weights


def dense(weights: dict[str, torch.Tensor], adapter: AdapterConfig) -> dict[str, torch.Tensor]:
    """dW = alpha / r B A of every layer by its name, in fp64; of a convolution O I h w."""
    scaling = (adapter.alpha or adapter.rank) / adapter.rank
    deltas = {}
    for name, a in weights.items():
        if ".lora_A." in name:
            b = weights[name.replace(".lora_A.", ".lora_B.")]
            layer = name.partition(".lora_A.")[0]
            deltas[layer] = scaling * torch.tensordot(b.double().flatten(1), a.double(), dims=1)
    return deltas


def measured(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What each adapted layer does besides its base, read off its answers to unit vectors (in an fp64 network).

    A convolution with stride s and kernel h x w that sees one pixel set to 1 answers with its kernel, mirrored; with
    stride 1 and enough padding around the pixel nothing of it is cut off.
    """
    deltas = {}
    layers: Any = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        base = layer.get_base_layer()
        with torch.no_grad():
            if isinstance(base, torch.nn.Linear):
                units = torch.eye(base.in_features, dtype=torch.float64)
                deltas[name] = (layer(units) - base(units)).T
            else:
                height, width = base.kernel_size
                units = torch.zeros(base.in_channels, base.in_channels, 2 * height - 1, 2 * width - 1).double()
                units[range(base.in_channels), range(base.in_channels), height - 1, width - 1] = 1
                answer = (layer(units) - base(units))[
                    ..., base.padding[0] : base.padding[0] + height, base.padding[1] : base.padding[1] + width
                ]
                deltas[name] = answer.flip(-1, -2).transpose(0, 1)
    return deltas


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("adapter", [AdapterConfig(rank=2), ATTENTION, EVERYTHING], ids=["plain", "alpha", "conv"])
@pytest.mark.parametrize("scale", [1.0, 0.37, -2.5])
def test_scale_multiplies_dw(adapter: AdapterConfig, scale: float, tmp_path: Path) -> None:
    """A scale c adds c alpha / r B A to every weight (1e-6, in fp64), whatever alpha / r is."""
    folder, weights = saved(tmp_path, adapter)
    network = tiny_unet().double()
    inject.attach(network, [(folder, 1.0)], scale=scale)
    got, expected = measured(network), dense(weights, adapter)
    assert got.keys() == expected.keys()
    for layer, delta in expected.items():
        assert relative(got[layer], scale * delta) < 1e-6


def test_mixing_is_the_dense_sum(tmp_path: Path) -> None:
    """1.5 (0.3 dW_1 - 0.8 dW_2), ranks 2 and 3, alphas 8 and 1.5, the second on convolutions too; and merged."""
    (first, weights_1), (second, weights_2) = (
        saved(tmp_path / "1", ATTENTION, 1),
        saved(tmp_path / "2", EVERYTHING, 2),
    )
    network, base = tiny_unet().double(), tiny_unet().double()
    inject.attach(network, [(first, 0.3), (second, -0.8)], scale=1.5)
    deltas_1, deltas_2, got = dense(weights_1, ATTENTION), dense(weights_2, EVERYTHING), measured(network)
    assert set(deltas_1) < set(deltas_2) == set(got)
    expected = {name: 1.5 * (0.3 * deltas_1.get(name, 0) - 0.8 * delta) for name, delta in deltas_2.items()}
    for name, delta in expected.items():
        assert relative(got[name], delta) < 1e-6
    for name, weight in inject.merged(network).state_dict().items():
        delta = expected.get(name.removesuffix(".weight"))
        torch.testing.assert_close(weight, base.state_dict()[name] + (0 if delta is None else delta), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sources", [(1.0,), (0.0, 0.0)], ids=["scale", "weights"])
def test_scale_zero_is_the_base(sources: tuple[float, ...], tmp_path: Path) -> None:
    """Bit for bit: nothing is added, not zero times something. The file is read and must fit all the same."""
    folder, _ = saved(tmp_path, ATTENTION)
    network, x = tiny_unet(), torch.randn(2, 1, 8, 8)
    scale = 0.0 if sources == (1.0,) else 1.0
    assert inject.attach(network, [(folder, weight) for weight in sources], scale=scale) == {}
    with torch.no_grad():
        assert torch.equal(network(x, TIMESTEPS).sample, tiny_unet()(x, TIMESTEPS).sample)
    with pytest.raises(ConfigError, match="no such adapter"):
        inject.attach(network, [(tmp_path / "elsewhere", 0.0)])


def test_attaching_draws_nothing(tmp_path: Path) -> None:
    """torch's generator stays where it was."""
    folder, _ = saved(tmp_path, ATTENTION)
    network, before = tiny_unet(), torch.get_rng_state()
    inject.attach(network, [(folder, 1.0)])
    assert torch.equal(torch.get_rng_state(), before)


def test_switching_keeps_gradients_alive() -> None:
    """Off: the base bit for bit. On again: what was trainable still is, and a graph made before goes through."""
    policy = tiny_policy(adapter=ATTENTION)
    put(policy, random_weights(policy))
    x, base = torch.randn(2, 1, 8, 8), tiny_unet()
    on = policy.unet(x, TIMESTEPS).sample
    inject.set_active(policy.unet, [])
    with torch.no_grad():
        assert torch.equal(policy.unet(x, TIMESTEPS).sample, base(x, TIMESTEPS).sample)
    gradients = torch.autograd.grad(on.square().sum(), list(policy.trainable().values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    inject.set_active(policy.unet, [inject.TRAINED])
    assert torch.equal(policy.unet(x, TIMESTEPS).sample, on)
    assert all(parameter.requires_grad for parameter in policy.trainable().values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_window_in_training(checkpointing: bool) -> None:
    """steps [1, 3) of 5: outside, the base bit for bit and no gradient; inside, as without a window."""
    windowed = tiny_policy(adapter=AdapterConfig(rank=2, steps=(1, 3)), checkpointing=checkpointing)
    always, base = tiny_policy(adapter=AdapterConfig(rank=2)), tiny_policy()
    weights = random_weights(always)
    for policy in (windowed, always):
        put(policy, weights)
    x = torch.randn(2, 1, 8, 8)
    assert [windowed.trains(step) for step in range(5)] == [False, True, True, False, False]
    outputs = {step: windowed.mean(x, [step, step]) for step in range(5)}
    for step, mean in outputs.items():
        same = always if step in (1, 2) else base
        assert torch.equal(mean, same.mean(x, [step, step]))
        assert mean.requires_grad == (step in (1, 2))
    # Another step was last: a recomputing graph turns the adapter on again for its own step.
    (got,) = torch.autograd.grad(outputs[2].sum(), [next(iter(windowed.trainable().values()))])
    (expected,) = torch.autograd.grad(always.mean(x, [2, 2]).sum(), [next(iter(always.trainable().values()))])
    assert torch.equal(got, expected) and got.abs().max() > 0
    assert torch.equal(windowed.mean(x, [0, 4]), base.mean(x, [0, 4]))
    with pytest.raises(AssertionError, match="disagree"):
        windowed.mean(x, [0, 1])


def test_base_may_be_nested() -> None:
    """Inside `base` twice and once, at steps of the window: the base. After both: the adapter."""
    policy, base = tiny_policy(adapter=AdapterConfig(rank=2, steps=(1, 3))), tiny_policy()
    put(policy, random_weights(policy))
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = base.mean(x, [1, 2])
        with policy.base():
            with policy.base():
                assert torch.equal(policy.mean(x, [1, 2]), expected)
            assert torch.equal(policy.mean(x, [1, 2]), expected)
        assert not torch.equal(policy.mean(x, [1, 2]), expected)


def test_window_is_saved_and_used_in_sampling(tmp_path: Path) -> None:
    """A chain with the attached adapter is, step by step, the one that was trained; another chain length is refused."""
    adapter = AdapterConfig(rank=2, alpha=8, steps=(1, 3))
    trained = tiny_policy(adapter=adapter)
    weights = random_weights(trained)
    put(trained, weights)
    trained.save(tmp_path, weights)
    assert not (tmp_path / "model_index.json").exists()  # a merged pipeline would act at all steps
    sampled = tiny_policy()
    sampled.attach([(tmp_path, 1.0)])
    noise = Noise(seed=1, stream=Stream.SAMPLE, round_number=0, shape=trained.shape)
    chains = [
        rollout(policy, noise, range(2), ["", ""], batch=2, storage=torch.float32) for policy in (trained, sampled)
    ]
    assert torch.equal(*chains)
    with pytest.raises(ConfigError, match=r"acts in steps 1:3 of 5, and this chain has 10; .*--adapter-steps"):
        tiny_policy(steps=10).attach([(tmp_path, 1.0)])
    other, base, x = tiny_policy(steps=10), tiny_policy(steps=10), torch.randn(1, 1, 8, 8)
    other.attach([(tmp_path, 1.0)], steps=(4, 6))
    with torch.no_grad():
        differs = [not torch.equal(other.mean(x, [step]), base.mean(x, [step])) for step in range(10)]
    assert differs == [step in (4, 5) for step in range(10)]


def test_adapters_keep_windows_of_their_own(tmp_path: Path) -> None:
    """One acts early, the other late; in between both."""
    for name, window in (("early", (0, 3)), ("late", (2, 5))):
        saved(tmp_path / name, AdapterConfig(rank=2, steps=window), seed=len(name))
    both, x = tiny_policy(), torch.randn(1, 1, 8, 8)
    both.attach([(tmp_path / "early", 1.0), (tmp_path / "late", 1.0)])
    for step, names in ((0, ["early"]), (2, ["early", "late"]), (4, ["late"])):
        expected = tiny_policy()
        expected.attach([(tmp_path / name, 1.0) for name in names], steps=(0, 5))
        with torch.no_grad():
            assert torch.equal(both.mean(x, [step]), expected.mean(x, [step]))


def test_adapters_add_up_in_one_order(tmp_path: Path) -> None:
    """The order in which they were given, also after they were off: sums of floats depend on it, and ranks agree."""
    folder, _ = saved(tmp_path, ATTENTION)
    policy, x = tiny_policy(), torch.randn(1, 1, 8, 8)
    policy.attach([(folder, 0.1)] * 7, steps=(1, 3))
    with torch.no_grad():
        for step in (0, 1):
            policy.mean(x, [step])
    layer = next(module for module in policy.unet.modules() if isinstance(module, LoraLayer))
    assert layer.active_adapters == [f"attached_{number}" for number in range(7)]


PREFIXED: dict[str, Callable[[str], str]] = {
    "none": lambda name: name,
    "peft": lambda name: f"base_model.model.{name}",
    "diffusers": lambda name: f"unet.{name}",
    "ddp, compiled": lambda name: f"module._orig_mod.{name}",
    "compiled, ddp, peft": lambda name: f"_orig_mod.module.base_model.model.{name}",
    "block compiled": lambda name: name.replace("mid_block.", "mid_block._orig_mod."),
    "adapter's name": lambda name: name.replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("prefixed", PREFIXED)
def test_wrapper_prefixes_are_taken_off(prefixed: str, tmp_path: Path) -> None:
    """The same network, however the training script had wrapped it."""
    folder, _ = saved(tmp_path / "plain", ATTENTION)
    state = {plain_name(name): tensor for name, tensor in load_file(folder / PEFT_NAME).items()}
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    (wrapped / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    save_file({PREFIXED[prefixed](name): tensor for name, tensor in state.items()}, wrapped / PEFT_NAME)
    expected, got, x = tiny_unet(), tiny_unet(), torch.randn(2, 1, 8, 8)
    inject.attach(expected, [(folder, 1.0)])
    inject.attach(got, [(wrapped, 1.0)])
    with torch.no_grad():
        assert torch.equal(got(x, TIMESTEPS).sample, expected(x, TIMESTEPS).sample)


def test_plain_peft_loads_the_folder(tmp_path: Path) -> None:
    """peft.PeftModel.from_pretrained, alpha 8 at rank 2: the same output (1e-6)."""
    folder, _ = saved(tmp_path, ATTENTION)
    ours, x = tiny_unet(), torch.randn(2, 1, 8, 8)
    inject.attach(ours, [(folder, 1.0)])
    network: Any = tiny_unet()
    theirs = peft.PeftModel.from_pretrained(network, str(folder))
    with torch.no_grad():
        assert (theirs(x, TIMESTEPS).sample - ours(x, TIMESTEPS).sample).abs().max() < 1e-6


def test_broken_weights_are_not_saved_and_idle_ones_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not finite: NumericError and no file. B = 0, as before any update: a warning, and the file."""
    for make in (tiny_policy, tiny_stable_diffusion):
        policy = make(adapter=ATTENTION)
        untrained = {name: parameter.detach().clone() for name, parameter in policy.trainable().items()}
        folder = tmp_path / make.__name__
        with caplog.at_level(logging.WARNING, logger="memdiff"):
            policy.save(folder / "untrained", untrained)
        assert [record.message for record in caplog.records] == [
            "the adapter that is saved changes nothing: lora_B is zero in all layers"
        ]
        caplog.clear()
        next(reversed(untrained.values()))[0] = float("inf")
        with pytest.raises(NumericError, match="not finite"):
            policy.save(folder / "broken", untrained)
        assert not list(folder.glob("broken/**/*.safetensors"))
        assert list(folder.glob("untrained/**/*.safetensors"))


LATENT = {"sd": (tiny_stable_diffusion, tiny_stable_diffusion_pipeline), "sdxl": (tiny_sdxl, tiny_sdxl_pipeline)}


@pytest.mark.parametrize("kind", LATENT)
@pytest.mark.parametrize("adapter", [ATTENTION, EVERYTHING], ids=["attention", "convolutions"])
def test_plain_diffusers_loads_the_file(kind: str, adapter: AdapterConfig, tmp_path: Path) -> None:
    """load_lora_weights: the same UNet outputs and images as ours, at alpha 8 of rank 2; without the header too."""
    make_policy, make_pipeline = LATENT[kind]
    policy = make_policy(steps=3, eta=0.0, guidance=3.0, adapter=adapter)
    weights = random_weights(policy)
    put(policy, weights)
    policy.save(tmp_path, weights)
    assert {file.name for file in tmp_path.iterdir()} == {DIFFUSERS_NAME, KOHYA_NAME}
    noise = Noise(seed=2, stream=Stream.SAMPLE, round_number=0, shape=policy.shape)
    prompts = ["three", "a seven"]
    policy.encode(prompts)
    with torch.no_grad():
        x_0 = rollout(policy, noise, range(2), prompts, batch=2, storage=torch.float32)
        expected = policy.decode(x_0)
    (tmp_path / "headless").mkdir()
    save_file(load_file(tmp_path / DIFFUSERS_NAME), tmp_path / "headless" / DIFFUSERS_NAME)
    errors = []
    for folder in (tmp_path, tmp_path / "headless", None):
        pipeline = make_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        if folder is not None:
            pipeline.load_lora_weights(str(folder))
        options: dict[str, Any] = {"guidance_scale": 3.0, "eta": 0.0, "num_inference_steps": 3, "output_type": "pt"}
        images = pipeline(prompts, latents=noise.initial(range(2)), **options).images
        errors.append(float((images - expected).abs().max()))
    assert max(errors[:2]) < 1e-4 and errors[2] > 1e-2, errors


@pytest.mark.parametrize("kind", LATENT)
def test_diffusers_writes_the_same_file(kind: str, tmp_path: Path) -> None:
    """Tensors and header of diffusers' own save_lora_weights, where alpha is the rank; and both attach alike."""
    make_policy, make_pipeline = LATENT[kind]
    policy = make_policy(adapter=AdapterConfig(rank=2))
    weights = random_weights(policy)
    put(policy, weights)
    policy.save(tmp_path / "ours", weights)
    make_pipeline().save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers=get_peft_model_state_dict(policy.unet),
        **_collate_lora_metadata({"unet": policy.unet}),
    )
    file_contents = []
    for folder in ("ours", "theirs"):
        with safe_open(tmp_path / folder / DIFFUSERS_NAME, framework="pt") as file:
            header = file.metadata()
        file_contents.append(
            (load_file(tmp_path / folder / DIFFUSERS_NAME), json.loads(header.pop(DIFFUSERS_KEY)), header)
        )
    (ours, about_ours, rest_ours), (theirs, about_theirs, rest_theirs) = file_contents
    assert rest_ours == rest_theirs == {"format": "pt"}
    for about in (about_ours, about_theirs):  # sets in no order
        about["unet.target_modules"] = sorted(about["unet.target_modules"])
    assert about_ours == about_theirs and about_ours["unet.lora_alpha"] == 2
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    networks = [make_pipeline().unet for _ in range(2)]
    for network, folder in zip(networks, ("ours", "theirs"), strict=True):
        inject.attach(network, [(tmp_path / folder / DIFFUSERS_NAME, 1.0)])
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_files_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "good", ATTENTION)
    file, config = folder / PEFT_NAME, folder / "adapter_config.json"
    state = load_file(file)
    first = next(iter(state))
    other: Any = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 32), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip

    def error_message(state: dict[str, torch.Tensor], network: torch.nn.Module | None = None) -> str:
        save_file(state, file)
        with pytest.raises(ConfigError) as error:
            inject.attach(network or tiny_unet(), [(folder, 1.0)])
        return str(error.value)

    assert "belongs to another network" in error_message(state, other)
    assert "this one has no layer somewhere" in error_message(
        {name.replace("mid_block", "somewhere"): tensor for name, tensor in state.items()}
    )
    assert "not finite" in error_message(state | {first: torch.full_like(state[first], torch.nan)})
    assert "don't belong together" in error_message({name: tensor for name, tensor in state.items() if name != first})
    assert "LoRA of a text encoder" in error_message(
        state | {"text_encoder.layers.0.q.lora_A.weight": torch.ones(2, 4)}
    )
    assert "LoRA of the denoiser" in error_message(state | {"mid_block.alpha": torch.ones(1)})
    assert "is empty" in error_message({})
    save_file(state, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    assert "DoRA" in error_message(state)
    broken = (
        "not JSON",
        "[1]",
        '{"lora_alpha": "2"}',
        '{"alpha_pattern": [3]}',
        '{"alpha_pattern": {"(": 2}}',
        '{"alpha_pattern": {"(a+)+b": 2}}',
        '{"alpha_pattern": {"x": 1%s}}' % ("0" * 400),
        '{"lora_alpha": 1e999}',
        '{"lora_alpha": NaN}',
        "[" * 99999,
    )
    for text in broken:
        config.write_text(text)
        assert "rank and alpha can't be read" in error_message(state)
    file.write_bytes(b"\x80PNG")
    with pytest.raises(ConfigError, match="can't be read as safetensors"):
        inject.attach(tiny_unet(), [(file, 1.0)])
    with pytest.raises(ConfigError, match="is no adapter"):
        inject.attach(tiny_unet(), [(config, 1.0)])


def test_factors_that_are_no_matrices_are_told(tmp_path: Path) -> None:
    """Shapes that make no product, numbers that are no floats; an 8-bit float is read."""
    folder, _ = saved(tmp_path / "good", ATTENTION)
    file = folder / PEFT_NAME
    state = load_file(file)
    first = next(name for name in state if "lora_A" in name)
    other = first.replace("lora_A", "lora_B")
    a, b = state[first], state[other]

    def refused(changed: dict[str, torch.Tensor], match: str) -> None:
        save_file(state | changed, file)
        with pytest.raises(ConfigError, match=match) as caught:
            inject.attach(tiny_unet(), [(folder, 1.0)])
        assert "\n" not in str(caught.value)

    for no_factor in (torch.tensor(1.0), a.flatten(), torch.zeros(0), a[:0], a[None], a[:1]):
        refused({first: no_factor.contiguous()}, "don't belong together")
    refused({first: a[:0], other: b[:, :0].contiguous()}, "don't belong together")  # of rank 0
    for kind in (torch.int64, torch.bool):
        refused({first: a.to(kind)}, "no plain floats")
    save_file(state | {first: a.to(torch.float8_e4m3fn)}, file)
    inject.attach(tiny_unet(), [(folder, 1.0)])


@pytest.mark.parametrize("rslora", [False, True])
def test_other_peoples_peft_adapters(rslora: bool, tmp_path: Path) -> None:
    """peft's own save_pretrained with a rank and an alpha for each layer, and alpha / sqrt(r): as peft itself."""
    torch.manual_seed(3)
    network: Any = tiny_unet()
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["to_q", "to_v", "conv1"], use_rslora=rslora, init_lora_weights=False,
        rank_pattern={"to_v": 5}, alpha_pattern={"mid_block.*.to_q": 7},
    )  # fmt: skip
    theirs = peft.get_peft_model(network, config)
    theirs.save_pretrained(str(tmp_path))
    ours, x = tiny_unet(), torch.randn(2, 1, 8, 8)
    inject.attach(ours, [(tmp_path, 1.0)])
    with torch.no_grad():
        expected = theirs.eval()(x, TIMESTEPS).sample
        assert (expected - tiny_unet()(x, TIMESTEPS).sample).abs().max() > 1e-2
        assert (ours(x, TIMESTEPS).sample - expected).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [(3, 3), (-1, 2), (4, 1)])
def test_empty_windows_are_refused(steps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"0 <= start < end|greater than or equal to 0"):
        AdapterConfig(steps=steps)


def test_a_window_past_the_chain_is_refused() -> None:
    """A recipe whose adapter would act in steps that there are not."""
    recipe = {
        "model": {"kind": "embedded"},
        "adapter": {"steps": [0, 9]},
        "sampler": {"steps": 8},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "digits"}],
    }
    with pytest.raises(ValueError, match=r"adapter.steps must end at sampler.steps, 8, or before, got 9"):
        Recipe.model_validate(recipe)
