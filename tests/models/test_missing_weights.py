"""Files that don't hold all the weights of their network: refused in one line, whatever the network and the file."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from benchmarks.recorder.models import tiny_vae
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.paths import CLASSIFIERS
from memdiff.errors import ConfigError
from memdiff.models.config import AdapterConfig
from memdiff.models.load import load_policy, model_of
from memdiff.models.lora import inject
from memdiff.models.lora.names import PEFT_NAME
from memdiff.models.options import ModelOptions
from memdiff.models.policy import Policy
from memdiff.models.sampler_config import SamplerConfig
from memdiff.rewards.classifier import load_image_classifier
from memdiff.rewards.clip import load_clip
from memdiff.rewards.config import ClassifierConfig
from memdiff.rewards.families_config import ClipSimilarityConfig
from tests.helpers.reward_models import tiny_clip_config, write_classifier, write_clip
from tests.helpers.tiny import CPU, tiny_policy, tiny_sdxl_pipeline, tiny_stable_diffusion_pipeline, tiny_unet

PARTS = [
    ("ddpm", "unet"),
    ("sd", "unet"),
    ("sd", "vae"),
    ("sd", "text_encoder"),
    ("sdxl", "unet"),
    ("sdxl", "vae"),
    ("sdxl", "text_encoder"),
    ("sdxl", "text_encoder_2"),
]
LIBRARIES = [("ddpm", "unet"), ("sd", "text_encoder")]  # a network of diffusers, one of transformers


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder / "ddpm")
    tiny_stable_diffusion_pipeline().save_pretrained(folder / "sd")
    tiny_sdxl_pipeline().save_pretrained(folder / "sdxl")
    return folder


def load(folder: Path, **changes: Any) -> Policy:
    model = model_of(str(folder), variant=changes.pop("variant", None)).model_copy(update=changes)
    return load_policy(model, SamplerConfig(steps=3), ModelOptions(), device=CPU)


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said_by_memdiff(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("memdiff.")]


def copy_of(pipelines: Path, kind: str, part: str, tmp_path: Path) -> tuple[Path, Path]:
    """(a folder to spoil, the weight file of one of its parts)."""
    folder = shutil.copytree(pipelines / kind, tmp_path / kind)
    (file,) = (folder / part).glob("*.safetensors")
    return folder, file


def write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def without_one(file: Path, at: float = 0.5) -> str:
    """Takes a tensor out of a file; returns its name."""
    tensors = load_file(file)
    name = sorted(tensors)[int(at * len(tensors))]
    del tensors[name]
    write(tensors, file)
    return name


def in_shards(file: Path) -> list[Path]:
    """The file as two shards and their index, in its place."""
    tensors, stem = load_file(file), file.name.removesuffix(".safetensors")
    file.unlink()
    names = sorted(tensors)
    shards = [file.with_name(f"{stem}-{number:05d}-of-00002.safetensors") for number in (1, 2)]
    index = {name: shards[2 * number // len(names)].name for number, name in enumerate(names)}
    for shard in shards:
        write({name: tensors[name] for name in names if index[name] == shard.name}, shard)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(content))
    return shards


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_missing_weight_is_named(kind: str, part: str, pipelines: Path, tmp_path: Path) -> None:
    folder, file = copy_of(pipelines, kind, part, tmp_path)
    name = without_one(file)
    said = refusal(folder)
    assert f"{folder}: {part} does not hold" in said and f"1 missing: {name};" in said


def test_every_kind_of_weight_of_a_unet_is_missed(pipelines: Path, tmp_path: Path) -> None:
    """Convolutions, norms, attention, time embedding: one of each, and all of them together."""
    folder, file = copy_of(pipelines, "ddpm", "unet", tmp_path)
    tensors = load_file(file)
    kinds = {".".join(name.split(".")[-2:]): name for name in sorted(tensors)}
    assert len(kinds) > 20
    for name in kinds.values():
        write({key: tensor for key, tensor in tensors.items() if key != name}, file)
        assert f"1 missing: {name};" in refusal(folder)
    write({key: tensor for key, tensor in tensors.items() if key not in kinds.values()}, file)
    assert f"{len(kinds)} missing: " in refusal(folder)


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_weight_of_another_shape_is_named(kind: str, part: str, pipelines: Path, tmp_path: Path) -> None:
    folder, file = copy_of(pipelines, kind, part, tmp_path)
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    write(tensors | {name: torch.cat([tensors[name]] * 2)}, file)
    want, got = tuple(tensors[name].shape), (2 * len(tensors[name]), *tensors[name].shape[1:])
    assert f"1 of another shape or kind: {name} is {got}, should be {want};" in refusal(folder)


def test_the_vae_that_stands_in_is_held_to_the_same(pipelines: Path, tmp_path: Path) -> None:
    """model.vae: a missing weight, one of another shape."""
    tiny_vae().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = without_one(file)
    assert f"model.vae {tmp_path} does not hold the weights of AutoencoderKL: 1 missing: {name};" in refusal(
        pipelines / "sd", vae=str(tmp_path)
    )
    write(tensors | {name: tensors[name].repeat(2)}, file)
    assert f"1 of another shape or kind: {name}" in refusal(pipelines / "sd", vae=str(tmp_path))


def spoil_shard(file: Path) -> None:
    in_shards(file)[1].unlink()


def spoil_index(content: str) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        in_shards(file)
        file.with_name(f"{file.name}.index.json").write_text(content)

    return spoil


def pickled_nonsense(file: Path) -> None:
    file.unlink()
    name = "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"
    file.with_name(name).write_bytes(b"hello")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "a page": lambda file: file.write_text("<html>not found</html>"),
    "gone": Path.unlink,
    "a shard gone": spoil_shard,
    "no index": spoil_index("{"),
    "an index that is a list": spoil_index("[]"),
    "no pickle": pickled_nonsense,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("kind", "part"), LIBRARIES)
def test_damaged_files_are_one_line(kind: str, part: str, damage: str, pipelines: Path, tmp_path: Path) -> None:
    folder, file = copy_of(pipelines, kind, part, tmp_path)
    DAMAGE[damage](file)
    said = refusal(folder)
    assert f"model.path {folder}: no pipeline could be loaded ({part}: " in said


@pytest.mark.parametrize(("kind", "part"), LIBRARIES)
def test_shards_are_read_and_a_hole_in_one_is_named(kind: str, part: str, pipelines: Path, tmp_path: Path) -> None:
    """Also where the index names a weight that no shard holds, which the library does not report."""
    folder, file = copy_of(pipelines, kind, part, tmp_path)
    whole = load(folder).networks[part].state_dict()
    shards = in_shards(file)
    sharded = load(folder).networks[part].state_dict()
    assert whole.keys() == sharded.keys() and all(torch.equal(whole[name], sharded[name]) for name in whole)
    name = without_one(shards[1])
    assert f"1 missing: {name};" in refusal(folder)


@pytest.mark.parametrize(("kind", "part"), LIBRARIES)
def test_bin_files_and_variants_are_held_to_the_same(kind: str, part: str, pipelines: Path, tmp_path: Path) -> None:
    """Read whole; with a weight less, refused. A variant of one part alone is read beside the others' plain files."""
    folder, file = copy_of(pipelines, kind, part, tmp_path)
    whole = load(folder).networks[part].state_dict()
    tensors = load_file(file)
    file.unlink()
    pickled = file.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save(tensors, pickled)
    assert all(torch.equal(whole[name], tensor) for name, tensor in load(folder).networks[part].state_dict().items())
    name = sorted(tensors)[3]
    torch.save({key: tensor for key, tensor in tensors.items() if key != name}, pickled)
    assert f"1 missing: {name};" in refusal(folder)
    pickled.unlink()
    variant = file.with_name(f"{file.name.removesuffix('.safetensors')}.fp16.safetensors")
    write(tensors, variant)
    read = load(folder, variant="fp16").networks[part].state_dict()
    assert all(torch.equal(whole[key], tensor) for key, tensor in read.items())
    name = without_one(variant)
    assert f"1 missing: {name};" in refusal(folder, variant="fp16")


def test_all_parts_in_one_folder(pipelines: Path, tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32 lies on the hub: read, and held to the same."""
    folder, file = copy_of(pipelines, "ddpm", "unet", tmp_path)
    for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        path.rename(folder / path.name)
    for part in ("unet", "scheduler"):
        (folder / part).rmdir()
    assert torch.equal(load(folder).networks["unet"].conv_in.weight, tiny_unet().conv_in.weight)  # type: ignore[union-attr]
    name = without_one(folder / file.name)
    assert f"1 missing: {name};" in refusal(folder)


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_names_that_the_libraries_translate_are_not_missing(
    pipelines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attention of old VAEs; CLIP's text model under the prefix of older checkpoints, with position indices."""
    folder, file = copy_of(pipelines, "sd", "vae", tmp_path)
    tensors = load_file(file)
    for new, old in OLD_ATTENTION.items():
        tensors = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): tensors[name] for name in tensors}
    assert any(".proj_attn." in name for name in tensors)
    write(tensors, file)
    text = folder / "text_encoder" / "model.safetensors"
    plain = {name.removeprefix("text_model."): tensor for name, tensor in load_file(text).items()}
    positions = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    write({f"text_model.{name}": tensor for name, tensor in plain.items()} | positions, text)
    before, after = load(pipelines / "sd").networks, load(folder).networks
    for part in ("vae", "text_encoder"):
        states = before[part].state_dict(), after[part].state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not said_by_memdiff(caplog)


def test_weights_that_a_network_has_no_use_for_are_told(
    pipelines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, file = copy_of(pipelines, "ddpm", "unet", tmp_path)
    write(load_file(file) | {"down_blocks.7.conv.weight": torch.ones(3)}, file)
    with caplog.at_level(logging.WARNING):
        load(folder)
    (said,) = said_by_memdiff(caplog)
    assert "1 tensors of its files are not used by UNet2DModel: down_blocks.7.conv.weight" in said


def test_parts_of_another_class_are_told(pipelines: Path, tmp_path: Path) -> None:
    """Before any weights are read; of whatever kind the index's entry is."""
    folder, _ = copy_of(pipelines, "sd", "unet", tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    for entry, class_name in ((["diffusers", "UNet2DModel"], "UNet2DModel"), ([None, None], "none"), (3, "none")):
        (folder / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
        assert f"unet must be a UNet2DConditionModel, got {class_name}" in refusal(folder)
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["os", "system"]}))
    assert "text_encoder must be a text model of transformers, got system" in refusal(folder)


def test_reward_networks_are_held_to_the_same(tmp_path: Path) -> None:
    """transformers' classifier, missing and of another shape; CLIP's image and text networks."""
    write_classifier(tmp_path / "net")
    file = tmp_path / "net" / "model.safetensors"
    part = ClassifierConfig.model_validate({"kind": "classifier", "path": str(tmp_path / "net"), "label": "male"})
    tensors = load_file(file)
    name = "classifier.bias"
    write({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(ConfigError, match=f"reward classifier .* 1 missing: {name};"):
        load_image_classifier(part, CPU)
    write(tensors | {name: torch.cat([tensors[name]] * 2)}, file)
    with pytest.raises(ConfigError, match=f"reward classifier .* 1 of another shape or kind: {name}"):
        load_image_classifier(part, CPU)
    clip: CLIPModel = write_clip(tmp_path / "clip", tiny_clip_config())
    file = tmp_path / "clip" / "model.safetensors"
    similarity = ClipSimilarityConfig.model_validate({"kind": "clip_similarity", "path": str(tmp_path / "clip")})
    state = load_file(file)
    for name in ("vision_model.post_layernorm.bias", "text_model.final_layer_norm.bias", "text_projection.weight"):
        assert name in clip.state_dict()
        write({key: tensor for key, tensor in state.items() if key != name}, file)
        with pytest.raises(ConfigError, match=f"1 missing: {name};"):
            load_clip(similarity, CPU)


def test_the_embedded_classifiers_are_held_to_the_same(tmp_path: Path) -> None:
    for which in ("reward", "judge"):
        shutil.copy(CLASSIFIERS / f"{which}.safetensors", tmp_path)
        file = tmp_path / f"{which}.safetensors"
        name = without_one(file)
        with pytest.raises(ConfigError, match=f"{which}.safetensors does not hold .* 1 missing: {name};"):
            load_classifier(which, tmp_path)  # type: ignore[arg-type]
        file.write_bytes(b"")
        with pytest.raises(ConfigError, match="not a whole safetensors file"):
            load_classifier(which, tmp_path)  # type: ignore[arg-type]


def test_an_adapter_without_one_of_its_layers_is_refused(tmp_path: Path) -> None:
    """What its config says that it adapts is all there, or it is not applied."""
    policy = tiny_policy(adapter=AdapterConfig(rank=2))
    policy.save(tmp_path, {name: weight.detach() + 1 for name, weight in policy.trainable().items()})
    file = tmp_path / "adapter" / PEFT_NAME
    inject.attach(tiny_unet(), [(file.parent, 1.0)])
    state = load_file(file)
    layer = sorted(state)[0].rpartition(".lora_A")[0]
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(layer)}, file)
    name = layer.removeprefix("base_model.model.") + ".lora_A.weight"
    with pytest.raises(ConfigError, match=f"the adapter that its config describes: 1 missing: {name};"):
        inject.attach(tiny_unet(), [(file.parent, 1.0)])
