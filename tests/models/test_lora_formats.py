"""LoRA files of other programs: read at the dW that their makers meant, or refused by name; ours in their names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from memdiff.errors import ConfigError
from memdiff.models.config import AdapterConfig
from memdiff.models.lora import inject
from memdiff.models.lora.names import DIFFUSERS_NAME, KOHYA_NAME
from memdiff.models.lora.paths import find_adapter
from memdiff.models.quiet import quiet_libraries
from tests.helpers import lora_files
from tests.helpers.lora_files import Factors, Tensors, dense, factors_for, in_network
from tests.helpers.tiny import tiny_sdxl, tiny_sdxl_pipeline, tiny_stable_diffusion, tiny_stable_diffusion_pipeline

quiet_libraries()
PIPELINES = {"sd": tiny_stable_diffusion_pipeline, "sdxl": tiny_sdxl_pipeline}
POLICIES = {"sd": tiny_stable_diffusion, "sdxl": tiny_sdxl}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MORE = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
EVERYTHING = (*MORE, "conv1", "conv2", "conv_shortcut", "time_emb_proj")

FORMATS: dict[str, tuple[Callable[[Factors, Any], Tensors], tuple[str, ...]]] = {
    "peft names": (lambda factors, config: lora_files.peft_names(factors), EVERYTHING),
    "training scripts": (lambda factors, config: lora_files.training_script(factors), EVERYTHING),
    "old and new names": (lambda factors, config: lora_files.attention_alone(factors), EVERYTHING),
    "processors": (lambda factors, config: lora_files.processors(factors), ATTENTION),
    "processors without unet": (lambda factors, config: lora_files.processors(factors, ""), ATTENTION),
    "kohya": (lambda factors, config: lora_files.kohya(factors), EVERYTHING),
    "kohya by authors": (lora_files.kohya, MORE),
}


def relative(got: Tensors, expected: Tensors) -> float:
    assert got.keys() == expected.keys()
    return max(float((got[name] - delta).abs().max() / delta.abs().max()) for name, delta in expected.items())


def attached(unet: Any, file: Path, weight: float = 1.0) -> Tensors:
    inject.attach(unet, [(file, weight)])
    return in_network(unet)


@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "ranks and alphas mixed"])
# kohya names Stable Diffusion's layers as diffusers does: its authors' names are SDXL's alone.
@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in PIPELINES for name in FORMATS if (kind, name) != ("sd", "kohya by authors")],
)
def test_each_format_is_read_at_its_dw(kind: str, name: str, mixed: bool, tmp_path: Path) -> None:
    """alpha / rank B A, worked out in fp64; and what diffusers' own load_lora_weights makes of the file."""
    write, targets = FORMATS[name]
    pipeline = PIPELINES[kind]()
    config = pipeline.unet.config
    ranks, alphas = ((2, 3, 2), (1.0, 4.0)) if mixed else ((4,), (1.0,))
    factors = factors_for(pipeline.unet, targets, ranks=ranks, alphas=alphas)
    file = tmp_path / "lora.safetensors"
    save_file(write(factors, config), file)
    half = {layer: 0.5 * delta for layer, delta in dense(factors).items()}
    assert relative(attached(PIPELINES[kind]().unet, file, 0.5), half) < 1e-6
    # diffusers 0.42 leaves out names without `unet.` and old names beside new ones, and loses alphas that differ in
    # attention layers.
    if name not in ("processors without unet", "old and new names") and not (mixed and name.startswith("kohya")):
        pipeline.load_lora_weights(str(file))
        assert relative(in_network(pipeline.unet), dense(factors)) < 1e-6


@pytest.mark.parametrize(
    "adapter", [AdapterConfig(rank=2, alpha=7), AdapterConfig(rank=3, alpha=1.5, convolutions=True)]
)
@pytest.mark.parametrize("kind", POLICIES)
def test_round_trips_keep_dw(kind: str, adapter: AdapterConfig, tmp_path: Path) -> None:
    """Both saved files, with and without header, through diffusers' loader and through ours, at alpha != rank."""
    policy = POLICIES[kind](adapter=adapter)
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(p.shape, generator=generator) * 0.2 for name, p in policy.trainable().items()}
    layers = [name.partition(".lora_A.")[0] for name in weights if ".lora_A." in name]
    expected = dense(
        {
            layer: (
                weights[f"{layer}.lora_A.default.weight"],
                weights[f"{layer}.lora_B.default.weight"],
                adapter.alpha or 0,
            )
            for layer in layers
        }
    )
    policy.save(tmp_path, weights)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([DIFFUSERS_NAME, KOHYA_NAME])
    for name in (DIFFUSERS_NAME, KOHYA_NAME):
        headless = tmp_path / "headless" / name
        headless.parent.mkdir(exist_ok=True)
        save_file(load_file(tmp_path / name), headless)
        for file in (tmp_path / name, headless):
            pipeline = PIPELINES[kind]()
            pipeline.load_lora_weights(str(file))
            assert relative(in_network(pipeline.unet), expected) < 1e-6
            assert relative(attached(PIPELINES[kind]().unet, file), expected) < 1e-6
    names = {name.partition(".")[0] for name in load_file(tmp_path / KOHYA_NAME)}
    assert names == {"lora_unet_" + layer.replace(".", "_") for layer in layers}  # by which ComfyUI looks them up


def test_files_under_any_name(tmp_path: Path) -> None:
    """A renamed file, the only one of a folder, and what was pickled before safetensors; several are to be named."""
    factors = factors_for(tiny_stable_diffusion_pipeline().unet, ATTENTION, ranks=(2,), alphas=(1.0,))
    folders = {name: tmp_path / name for name in ("renamed", "pickled", "two")}
    for folder in folders.values():
        folder.mkdir()
    save_file(lora_files.kohya(factors), folders["renamed"] / "my style v2.safetensors")
    (folders["renamed"] / "optimizer.safetensors").write_bytes(b"")
    torch.save(lora_files.training_script(factors), folders["pickled"] / "pytorch_lora_weights.bin")
    for folder in (folders["renamed"], folders["pickled"]):
        assert relative(attached(tiny_stable_diffusion_pipeline().unet, folder), dense(factors)) < 1e-6
    for name in "ab":
        save_file(lora_files.kohya(factors), folders["two"] / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=r"holds 2 .safetensors files; name one of them, such as .*a\.safetensors"):
        find_adapter(folders["two"])


class Hostile:
    """Would write a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"unet.x.lora.up.weight": Hostile(tmp_path / "ran")}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(ConfigError, match="was not loaded, and nothing in it was run"):
        attached(tiny_stable_diffusion_pipeline().unet, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02h\x05.", b"\x80\x02R.", b"\x80\x02a.", b"\x80\x02X\xff\xff\xff\xff.", b"PK\x03\x04"]
)
def test_damaged_pickles_are_one_line(content: bytes, tmp_path: Path) -> None:
    """Whatever exception the bytes lead to: a name that was never stored, an empty stack, an endless text."""
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(content)
    with pytest.raises(ConfigError, match="was not loaded, and nothing in it was run") as caught:
        attached(tiny_stable_diffusion_pipeline().unet, tmp_path)
    assert "\n" not in str(caught.value)


REFUSED = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "LoRA of a text encoder too",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "LoRA of a text encoder too",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora.down.weight": "LoRA of a text encoder too",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "LoRA of a text encoder too",
    "lora_unet_mid_block_attentions_0_proj_in.dora_scale": "holds DoRA",
    "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": "holds LoHa",
    "unet.mid_block.attentions.0.proj_in.lokr_w1": "holds LoKr",
    "lora_unet_mid_block_resnets_0_conv1.lora_mid.weight": "holds LoCon",
    "lora_unet_mid_block_attentions_0_proj_in.diff": "holds whole weight differences",
    "lora_unet_mid_block_attentions_0_proj_in.alpha": "does not belong to one lora_down",
    "lora_unet_something_else.lora_down.weight": "diffusers can't translate",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_of_a_unet_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Beside layers that would fit: nothing is left out silently."""
    unet = tiny_stable_diffusion_pipeline().unet
    factors = factors_for(unet, ATTENTION, ranks=(2,), alphas=(1.0,))
    file = tmp_path / "lora.safetensors"
    save_file(lora_files.kohya(factors) | {name: torch.ones(1)}, file)
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        attached(unet, file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    """SDXL's on Stable Diffusion, in each of its key names."""
    sdxl: StableDiffusionXLPipeline = tiny_sdxl_pipeline()
    factors = factors_for(sdxl.unet, ATTENTION, ranks=(2,), alphas=(1.0,))
    for state in (
        lora_files.kohya(factors),
        lora_files.kohya(factors, sdxl.unet.config),
        lora_files.peft_names(factors),
    ):
        save_file(state, tmp_path / "lora.safetensors")
        with pytest.raises(ConfigError, match="belongs to another network"):
            attached(tiny_stable_diffusion_pipeline().unet, tmp_path / "lora.safetensors")
