"""Checkpoints in one file: the same weights as the folder's, bit for bit; everything else refused by name."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from memdiff.errors import ConfigError
from memdiff.evaluation.request import Options, prepare
from memdiff.models import architectures, single_file
from memdiff.models.config import SdxlConfig, StableDiffusionConfig
from memdiff.models.folder import check_folder
from memdiff.models.latent_files import skeleton_parts
from memdiff.models.load import load_policy, model_of, skeleton_policy
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.single_file_kinds import shapes_of
from memdiff.recipe.init import kind_of
from memdiff.sampling.source import locate
from tests.helpers import original_names
from tests.helpers.against_diffusers import TEXTS, sampled
from tests.helpers.original_names import Tensors, in_one_file
from tests.helpers.tiny import CPU, tiny_sdxl_pipeline, tiny_stable_diffusion_pipeline

quiet_libraries()

PIPELINES: Mapping[str, Callable[[], Any]] = {
    "stable_diffusion": tiny_stable_diffusion_pipeline,
    "sdxl": tiny_sdxl_pipeline,
}
KINDS: Mapping[str, Any] = {"stable_diffusion": StableDiffusionConfig, "sdxl": SdxlConfig}
CLASSES: Mapping[str, Any] = {"stable_diffusion": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    for kind, make in PIPELINES.items():
        make().save_pretrained(folder / kind)
    return folder


def tensors_of(kind: str) -> Tensors:
    return {name: tensor.clone().contiguous() for name, tensor in in_one_file(PIPELINES[kind]()).items()}


def load(model: Any) -> Any:
    return load_policy(model, SamplerConfig(steps=3, guidance=2), ModelOptions(), device=CPU)


def of_file(kind: str, file: Path, folders: Path, **changes: Any) -> Any:
    return KINDS[kind](kind=kind, path=str(file), config=str(folders / kind), **changes)


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_file_is_the_folder_bit_for_bit(kind: str, folders: Path, tmp_path: Path) -> None:
    """Every weight of every network, and the images; diffusers' from_single_file reads the same file alike."""
    file = tmp_path / "model.safetensors"
    save_file(tensors_of(kind), file)
    assert model_of(str(file)).kind == kind_of(str(file)) == kind
    check_folder(of_file(kind, file, folders))
    policy = load(of_file(kind, file, folders))
    of_folder = load(KINDS[kind](kind=kind, path=str(folders / kind)))
    # diffusers tells SDXL's text encoders apart by their widths, which are equal here; the second is given to it.
    second = {name: of_folder.networks[name] for name in ("text_encoder_2",) if kind == "sdxl"}
    theirs = CLASSES[kind].from_single_file(str(file), config=str(folders / kind), local_files_only=True, **second)
    for name, network in policy.networks.items():
        expected, other = of_folder.networks[name].state_dict(), network.state_dict()
        assert expected.keys() == other.keys() and all(torch.equal(other[key], expected[key]) for key in expected)
        if name != "vae":  # of which the policy keeps the decoder alone
            assert all(torch.equal(other[key], tensor) for key, tensor in theirs.components[name].state_dict().items())
    assert torch.equal(sampled(policy)[1], sampled(of_folder)[1])
    assert policy.schedule == of_folder.schedule


def old_names(tensors: Tensors) -> Tensors:
    return {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}


def with_averages(tensors: Tensors) -> Tensors:
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    averages = {"model_ema." + "".join(name.split(".")[1:]): torch.zeros_like(unet[name]) for name in unet}
    return tensors | averages | {"betas": torch.ones(1000), "alphas_cumprod": torch.ones(1000)}


CHANGES: Mapping[str, Callable[[Tensors], Any]] = {
    "as it is": lambda tensors: tensors,
    "under state_dict, of a Lightning run": lambda tensors: {"state_dict": tensors, "global_step": 7, "epoch": 1},
    "with averages beside it": with_averages,
    "text encoder by old names": old_names,
}


@pytest.mark.parametrize("name", CHANGES)
def test_pickled_files_of_tensors_are_read(name: str, folders: Path, tmp_path: Path) -> None:
    """A .ckpt by torch.load with weights_only; the plain weights where there are averaged ones too."""
    tensors = tensors_of("stable_diffusion")
    torch.save(CHANGES[name](tensors), tmp_path / "model.ckpt")
    policy = load(of_file("stable_diffusion", tmp_path / "model.ckpt", folders))
    plain = original_names.unet_tensors(policy.networks["unet"])
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in plain.items())
    text = original_names.clip_tensors(policy.networks["text_encoder"], "cond_stage_model.transformer.")
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in text.items())


def test_half_precision_files_run_in_what_is_asked_for(folders: Path, tmp_path: Path) -> None:
    """A pruned fp16 file in fp32: the same halves, widened."""
    halves = {name: tensor.half() for name, tensor in tensors_of("sdxl").items()}
    save_file(halves, tmp_path / "model.safetensors")
    weight = load(of_file("sdxl", tmp_path / "model.safetensors", folders)).networks["unet"].conv_in.weight
    assert weight.dtype is torch.float32
    assert torch.equal(weight, halves["model.diffusion_model.input_blocks.0.0.weight"].float())


class Boom:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a file was run')",))


@pytest.mark.parametrize("content", ["code", "damaged", "a list"])
def test_pickles_of_more_than_tensors_are_not_read(content: str, folders: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    match content:
        case "code":
            torch.save({"state_dict": tensors_of("stable_diffusion"), "callbacks": Boom()}, file)
        case "damaged":
            file.write_bytes(pickle.dumps({"a": 1})[:-3])
        case _:
            torch.save([torch.ones(2)], file)
    said = refusal(lambda: load(of_file("stable_diffusion", file, folders)))
    assert "give the model's .safetensors file" in said or "and no tensors by their names" in said


def only(*beginnings: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name.startswith(beginnings)}


def renamed(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(2)}


def channels(count: int) -> Callable[[Tensors], Tensors]:
    return renamed_shape("model.diffusion_model.input_blocks.0.0.weight", (8, count, 3, 3))


def renamed_shape(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(shape)}


UNET = "model.diffusion_model."
REFUSED: Mapping[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "sd2": (renamed("cond_stage_model.model.token_embedding.weight"), "holds Stable Diffusion 2.x"),
    "sd3": (renamed(f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias"), "holds Stable Diffusion 3"),
    "flux": (renamed("double_blocks.0.img_attn.norm.key_norm.scale"), "holds Flux"),
    "refiner": (renamed("conditioner.embedders.0.model.ln_final.bias"), "holds SDXL's refiner"),
    "playground": (renamed("edm_mean"), "holds Playground 2.5"),
    "cascade": (renamed("clip_txt_mapper.weight"), "holds Stable Cascade"),
    "controlnet": (renamed("control_model.time_embed.0.weight"), "holds a ControlNet"),
    "lora": (lambda tensors: {"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, "holds a LoRA; give it as adapter.path"),
    "inpainting": (channels(9), "holds an inpainting model"),
    "pix2pix": (channels(8), "holds InstructPix2Pix"),
    "averages alone": (lambda tensors: only("model_ema.")(with_averages(tensors)), "holds the averaged weights (EMA)"),
    "vae alone": (only("first_stage_model."), "holds a VAE alone"),
    "text alone": (only("cond_stage_model."), "holds a text encoder alone"),
    "diffusers": (lambda tensors: {"conv_in.weight": torch.ones(2)}, "holds a UNet of diffusers alone"),
    "nothing": (lambda tensors: {"x": torch.ones(2)}, "holds nothing that memdiff knows, such as x"),
    "no vae": (only(UNET, "cond_stage_model."), "holds no vae; set model.vae"),
    "no text": (only(UNET, "first_stage_model."), "holds no text_encoder; give the whole model's file"),
    "sdxl": (lambda tensors: tensors_of("sdxl"), "holds a model of kind sdxl; set model.kind: sdxl"),
}


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(2)}
    content["state_dict"] = content
    torch.save(content, tmp_path / "model.ckpt")
    assert list(single_file.read_tensors(tmp_path / "model.ckpt")) == ["weight"]


def test_a_header_without_sense_is_one_line(tmp_path: Path) -> None:
    """What such headers are, `test_weight_headers.py` lists."""
    (tmp_path / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"[1]")
    said = refusal(lambda: shapes_of(tmp_path / "model.safetensors"))
    assert "model.safetensors is not a whole safetensors file: its header makes no sense" in said


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """From the header alone, before torch is loaded; of a .ckpt when it is read."""
    change, said = REFUSED[name]
    file = tmp_path / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in change(tensors_of("stable_diffusion")).items()}
    save_file(tensors, file)
    model = StableDiffusionConfig(kind="stable_diffusion", path=str(file))
    assert said in refusal(lambda: check_folder(model))
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert single_file.shapes_in(file) == shapes


def test_what_is_missing_or_unlike_is_named(folders: Path, tmp_path: Path) -> None:
    """One weight of each network; a v-prediction file without a scheduler; a file that is none."""
    file = tmp_path / "model.safetensors"
    for part, name in (
        ("unet", "model.diffusion_model.middle_block.1.proj_out.weight"),
        ("vae", "first_stage_model.decoder.mid.attn_1.q.weight"),
        ("text_encoder", "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight"),
        ("text_encoder_2", "conditioner.embedders.1.model.transformer.resblocks.1.ln_1.weight"),
    ):
        tensors = tensors_of("sdxl")
        del tensors[name]
        save_file(tensors, file)
        said = refusal(lambda: load(of_file("sdxl", file, folders)))
        assert said.startswith(f"model.path {file}: {part} does not hold the weights of") and "1 missing" in said
    save_file(tensors_of("sdxl") | {"v_pred": torch.zeros(1)}, file)
    assert "says that it predicts v" in refusal(lambda: check_folder(SdxlConfig(kind="sdxl", path=str(file))))
    check_folder(of_file("sdxl", file, folders))
    file.write_bytes(b"\x00" * 100)
    assert "is not a whole safetensors file" in refusal(lambda: check_folder(SdxlConfig(kind="sdxl", path=str(file))))


def test_another_vae_stands_in(folders: Path, tmp_path: Path) -> None:
    save_file(only(UNET, "cond_stage_model.")(tensors_of("stable_diffusion")), tmp_path / "model.safetensors")
    vae = str(folders / "stable_diffusion" / "vae")
    policy = load(of_file("stable_diffusion", tmp_path / "model.safetensors", folders, vae=vae))
    assert "decoder.conv_in.weight" in policy.networks["vae"].state_dict()


def test_the_config_is_of_a_file(folders: Path) -> None:
    with pytest.raises(ValueError, match="config goes with a path that is one file"):
        StableDiffusionConfig(kind="stable_diffusion", path=str(folders / "sdxl"), config=str(folders / "sdxl"))


def test_clips_tokenizer_stands_in_for_the_files(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without model.config; SDXL's second one pads with `!`. None at hand: one line that says what to fetch."""
    words = ["a", "a</w>", "!", "!</w>", "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=5).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(1)}, file)
    model = SdxlConfig(kind="sdxl", path=str(file))
    monkeypatch.setattr(single_file, "CLIP_TOKENIZER", str(tmp_path))
    tokenizers = single_file.read_tokenizers(model)
    ids = [tokenizers[name](["a"], padding="max_length")["input_ids"][0] for name in ("tokenizer", "tokenizer_2")]
    assert ids == [[4, 1, 5, 5, 5], [4, 1, 5, 2, 2]]
    monkeypatch.setattr(single_file, "CLIP_TOKENIZER", str(tmp_path / "nowhere"))
    assert "hf download" in refusal(lambda: single_file.read_tokenizers(model))


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_plan_needs_no_weights(kind: str, folders: Path, tmp_path: Path) -> None:
    """The skeleton of `model.config`'s networks; without one, of the public architecture."""
    save_file(tensors_of(kind), tmp_path / "model.safetensors")
    model = of_file(kind, tmp_path / "model.safetensors", folders)
    policy = skeleton_policy(model, SamplerConfig(steps=3), ModelOptions(), device=CPU)
    of_folder = KINDS[kind](kind=kind, path=str(folders / kind))
    expected = skeleton_policy(of_folder, SamplerConfig(steps=3), ModelOptions(), device=CPU)
    assert policy.shape == expected.shape and policy.schedule == expected.schedule
    assert {name: shapes(network) for name, network in policy.networks.items()} == {
        name: shapes(network) for name, network in expected.networks.items()
    }


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


PUBLIC = {  # tensors of each network in v1-5-pruned-emaonly.safetensors and sd_xl_base_1.0.safetensors
    "stable_diffusion": (architectures.STABLE_DIFFUSION_1, {"unet": 686, "vae": 248, "text_encoder": 197}),
    "sdxl": (
        architectures.SDXL_BASE,
        {"unet": 1680, "vae": 248, "text_encoder": 197, "text_encoder_2": 390},
    ),
}


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_name_of_the_public_models_is_translated(kind: str) -> None:
    """On tensors without memory: all names there and back, at their shapes, by the translation that loading uses."""
    architecture, counts = PUBLIC[kind]
    with torch.device("meta"):
        parts = skeleton_parts(architecture)
    networks = {"unet": parts.unet, "vae": parts.vae, **parts.text_encoders}
    prefix = {"stable_diffusion": "cond_stage_model.", "sdxl": "conditioner.embedders.0."}[kind] + "transformer."
    original = {
        "unet": original_names.unet_tensors(parts.unet),
        "vae": original_names.vae_tensors(parts.vae),
        "text_encoder": original_names.clip_tensors(parts.text_encoders["text_encoder"], prefix),
    }
    if kind == "sdxl":
        original["text_encoder_2"] = original_names.open_clip_tensors(parts.text_encoders["text_encoder_2"])
    assert {part: len(tensors) for part, tensors in original.items()} == counts
    together = {name: tensor for tensors in original.values() for name, tensor in tensors.items()}
    assert single_file_utils.infer_diffusers_model_type(together) == {"sdxl": "xl_base"}.get(kind, "v1")
    back = single_file.translated(together, architecture)
    for part, network in networks.items():
        got = {name.removeprefix("text_model."): tensor.shape for name, tensor in back[part].items()}
        got.pop("embeddings.position_ids", None)
        assert got == {name.removeprefix("text_model."): shape for name, shape in shapes(network).items()}


def test_commands_take_a_file(tmp_path: Path) -> None:
    """SOURCE of `memdiff sample`, and --model of `memdiff init`."""
    save_file(tensors_of("sdxl"), tmp_path / "model.safetensors")
    source = locate(str(tmp_path / "model.safetensors"), best=False, own_adapter=True)
    assert source.model == SdxlConfig(kind="sdxl", path=str(tmp_path / "model.safetensors"))
    (tmp_path / "notes.txt").write_text(json.dumps(TEXTS))
    assert "is a file; give a diffusers pipeline folder or a checkpoint in one file" in refusal(
        lambda: locate(str(tmp_path / "notes.txt"), best=False, own_adapter=True)
    )


def bare(tensors: Tensors) -> Tensors:
    """A VAE's file as it was shared beside Stable Diffusion: without a prefix, with what only its training needs."""
    own = {name.removeprefix("first_stage_model."): each for name, each in tensors.items() if "first_stage" in name}
    return own | {"loss.logvar": torch.zeros(())}


@pytest.mark.parametrize("layout", ["alone", "within a model", "by diffusers' names"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_a_vae_in_one_file(kind: str, layout: str, folders: Path, tmp_path: Path) -> None:
    """The same decoder, bit for bit, for a pipeline's folder and for a model in one file."""
    pipeline, file = PIPELINES[kind](), tmp_path / "vae.safetensors"
    for parameter in pipeline.vae.parameters():
        parameter.data.mul_(1.25)  # another VAE than the folder's
    changed = {name: tensor.clone().contiguous() for name, tensor in in_one_file(pipeline).items()}
    own = {name: tensor.contiguous() for name, tensor in pipeline.vae.state_dict().items()}
    save_file({"alone": bare(changed), "within a model": changed}.get(layout, own), file)
    of_folder = KINDS[kind](kind=kind, path=str(folders / kind), vae=str(file))
    check_folder(of_folder)
    save_file(tensors_of(kind), tmp_path / "model.safetensors")
    for model in (of_folder, of_file(kind, tmp_path / "model.safetensors", folders, vae=str(file))):
        decoder = load(model).networks["vae"].state_dict()
        assert decoder and all(torch.equal(decoder[name], own[name]) for name in decoder)
        skeleton = skeleton_policy(model, SamplerConfig(steps=3, guidance=2), ModelOptions(), device=CPU)
        shapes = {name: tensor.shape for name, tensor in skeleton.networks["vae"].state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in decoder.items()}


def test_what_is_no_vae_of_the_model_is_told(folders: Path, tmp_path: Path) -> None:
    """Before anything is loaded where the names say it, in one line."""
    model: dict[str, Any] = {"kind": "stable_diffusion", "path": str(folders / "stable_diffusion")}
    tensors = tensors_of("stable_diffusion")
    save_file({name: each for name, each in tensors.items() if "first_stage" not in name}, tmp_path / "no.safetensors")
    said = refusal(lambda: check_folder(StableDiffusionConfig(**model, vae=str(tmp_path / "no.safetensors"))))
    assert "no.safetensors holds no VAE of Stable Diffusion or SDXL" in said
    narrow = {name: each for name, each in bare(tensors).items() if name != "decoder.mid.block_1.norm1.weight"}
    save_file(narrow, tmp_path / "less.safetensors")
    said = refusal(lambda: load(StableDiffusionConfig(**model, vae=str(tmp_path / "less.safetensors"))))
    assert "less.safetensors" in said and "mid_block.resnets.0.norm1" in said


def test_sample_and_eval_take_a_file_with_a_config(folders: Path, tmp_path: Path) -> None:
    """The folder's configs and tokenizers, as a recipe's model.config; each image in the size that was asked for."""
    file, config = tmp_path / "model.safetensors", str(folders / "stable_diffusion")
    save_file(tensors_of("stable_diffusion"), file)
    model = of_file("stable_diffusion", file, folders)
    assert locate(str(file), best=False, own_adapter=True, config=config).model == model
    (subject,) = prepare(
        Options([f"mine={file}"], num_images=1, prompt="a", config=config, height=16, width=32)
    ).subjects
    assert subject.request is not None
    assert subject.request.model == model.model_copy(update={"height": 16, "width": 32})
