"""Folders as other people have them: read as their makers meant them, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from huggingface_hub import HfApi

from memdiff.errors import ConfigError
from memdiff.models.config import DdpmConfig, StableDiffusionConfig
from memdiff.models.folder import NETWORKS, PIPELINE_KINDS
from memdiff.models.load import load_policy, model_of, pipeline_kind, skeleton_policy
from memdiff.models.options import ModelOptions
from memdiff.models.quiet import quiet_libraries
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import ddim_scheduler
from memdiff.models.variants import variants_in, with_its_variant
from memdiff.recipe.init import kind_of
from memdiff.sampling.source import locate
from tests.helpers.tiny import CPU, tiny_stable_diffusion_pipeline, tiny_unet

quiet_libraries()


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder / "ddpm")
    tiny_stable_diffusion_pipeline().save_pretrained(folder / "sd")
    tiny_stable_diffusion_pipeline().save_pretrained(folder / "fp16", variant="fp16")
    return folder


def load(folder: Path, **changes: Any) -> Any:
    model = model_of(str(folder)).model_copy(update=changes)
    return load_policy(model, SamplerConfig(steps=3), ModelOptions(), device=CPU)


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


WITHOUT_BETAS = {
    "FlowMatchEulerDiscreteScheduler": {}, "FlowMatchHeunDiscreteScheduler": {}, "KarrasVeScheduler": {},
    "CMStochasticIterativeScheduler": {}, "EDMEulerScheduler": {}, "EDMDPMSolverMultistepScheduler": {},
    "IPNDMScheduler": {}, "ScoreSdeVeScheduler": {}, "UnCLIPScheduler": {}, "DDPMWuerstchenScheduler": {},
    "EulerDiscreteScheduler": {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "UniPCMultistepScheduler": {"use_flow_sigmas": True}, "CogVideoXDDIMScheduler": {"snr_shift_scale": 3.0},
}  # fmt: skip
WITH_BETAS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler",
)  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_BETAS)
def test_schedulers_without_betas_are_refused_by_name(name: str):
    """DDIM would take linear betas of its own, and another prediction type."""
    kind: Any = getattr(diffusers, name)
    assert refusal(lambda: ddim_scheduler(kind(**WITHOUT_BETAS[name]))).startswith(f"the pipeline's scheduler {name} ")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, of numpy 2
@pytest.mark.parametrize("name", WITH_BETAS)
def test_schedulers_with_betas_keep_them(name: str):
    kind: Any = getattr(diffusers, name)
    scheduler = ddim_scheduler(kind(beta_start=0.001, beta_end=0.01, beta_schedule="scaled_linear"))
    expected = torch.cumprod(1 - torch.linspace(0.001**0.5, 0.01**0.5, 1000) ** 2, dim=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, expected)


def test_a_variant_alone_is_read(pipelines: Path, tmp_path: Path):
    """fp16 files only, in all parts or in some; as model.vae too; several variants are for a person to choose from."""
    expected = load(pipelines / "sd")
    mixed = shutil.copytree(pipelines / "sd", tmp_path / "mixed")
    shutil.rmtree(mixed / "unet")
    shutil.copytree(pipelines / "fp16" / "unet", mixed / "unet")
    x, texts = torch.randn(1, 4, 8, 8), ["a cat"]
    vae = str(pipelines / "fp16" / "vae")
    read = [load(pipelines / "fp16"), load(mixed), load(pipelines / "sd", vae=vae, variant="fp16")]
    with torch.no_grad():
        for policy in (expected, *read):
            policy.encode(texts)
        for policy in read:
            assert torch.equal(policy.mean(x, [1], texts), expected.mean(x, [1], texts))
            assert torch.equal(policy.decode(x), expected.decode(x))
    file = next((mixed / "unet").glob("*.safetensors"))
    shutil.copy(file, file.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert "variants fp16, non_ema alone; set model.variant" in refusal(lambda: load(mixed))
    load(mixed, variant="fp16")
    shutil.copy(file, file.with_name("diffusion_pytorch_model.safetensors"))
    load(mixed)


def test_variants_by_their_files(tmp_path: Path):
    names = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": None,
        "model.fp16-00001-of-00002.safetensors": "fp16",
        "pytorch_model-00001-of-00002.bf16.bin": "bf16",
        "optimizer.fp32.safetensors": ...,
        "diffusion_pytorch_model.safetensors.index.json": ...,
    }
    for name in names:
        (tmp_path / name).touch()
    assert variants_in(tmp_path) == {variant for variant in names.values() if variant is not ...}


def spoilt(folder: Path, file: str, **values: Any) -> Path:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | values))
    return folder


def test_an_unsaid_size_is_asked_for(pipelines: Path, tmp_path: Path):
    ddpm = spoilt(shutil.copytree(pipelines / "ddpm", tmp_path / "ddpm"), "unet/config.json", sample_size=None)
    assert "no sample_size; set model.resolution" in refusal(lambda: load(ddpm))
    sd = spoilt(shutil.copytree(pipelines / "sd", tmp_path / "sd"), "unet/config.json", sample_size=None)
    assert "no sample_size; set model.resolution" in refusal(lambda: load(sd))
    assert load(sd, resolution=16).shape == (4, 8, 8)


def test_other_vaes_are_refused_by_name(pipelines: Path, tmp_path: Path):
    """What is neither an AutoencoderKL nor TAESD as model.vae, in a run and in a plan."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    model = StableDiffusionConfig(kind="stable_diffusion", path=str(pipelines / "sd"), vae=str(tmp_path))
    for read in (load_policy, skeleton_policy):
        said = refusal(lambda read=read: read(model, SamplerConfig(), ModelOptions(), device=CPU))
        assert "holds a VAE of class VQModel; memdiff decodes with an AutoencoderKL, or TAESD's AutoencoderTiny" in said


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.gguf"])
def test_files_where_folders_are_needed(name: str, tmp_path: Path):
    """Of an unconditional model, of configs; a suffix that nothing is read from."""
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"is a file; (only the model of|give a diffusers)"):
        DdpmConfig(kind="ddpm", path=str(tmp_path / name))
    with pytest.raises(ValueError, match="is a file; "):
        StableDiffusionConfig(kind="stable_diffusion", path="a/b", config=str(tmp_path / name))
    if name.endswith("gguf"):
        with pytest.raises(ValueError, match="is a file; "):
            StableDiffusionConfig(kind="stable_diffusion", path="a/b", vae=str(tmp_path / name))
        said = refusal(lambda: locate(str(tmp_path / name), best=False, own_adapter=True))
        assert "give a diffusers pipeline folder or a checkpoint in one file (.safetensors, .ckpt) or a hub id" in said


HOSTILE = ("", "[1]", '"a"', "null", "3", "{")
EMPTY = ("[]", "{}", '{"_class_name": ["a", "b"]}')  # as a network's config: all of its class's defaults, a large one
JSON = (
    "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json",
    "text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json",
)  # fmt: skip


@pytest.mark.parametrize("file", JSON)
def test_damaged_json_ends_in_one_line(file: str, pipelines: Path, tmp_path: Path):
    """Or is read all the same, where a file says nothing that is needed; never a traceback, in runs and plans."""
    folder = shutil.copytree(pipelines / "sd", tmp_path / "sd")
    content = json.loads((folder / file).read_text())
    empty = () if file.endswith("/config.json") else EMPTY
    for text in (*HOSTILE, *empty, json.dumps({key: [] for key in content})):
        (folder / file).write_text(text)
        for read in (load_policy, skeleton_policy):
            try:
                read(model_of(str(folder)), SamplerConfig(steps=3), ModelOptions(), device=CPU)
            except ConfigError as error:
                assert "\n" not in str(error)


class Hostile:
    """Would write a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_pickle_among_the_weights_runs_nothing(pipelines: Path, tmp_path: Path):
    folder = shutil.copytree(pipelines / "sd", tmp_path / "sd")
    (file,) = (folder / "unet").glob("*.safetensors")
    torch.save({"conv_in.weight": Hostile(tmp_path / "ran")}, file.with_suffix(".bin"))
    file.unlink()
    assert "unet: " in refusal(lambda: load(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"], None),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"], "fp16"),
        (["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"], "fp16"),
        (["safety_checker/model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"], None),
        (["unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_pytorch_model.ema.bin"], ConfigError),
    ],
)
def test_a_hub_id_without_plain_weights(files: list[str], variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers fetches plain files alone where no variant is named: the only one that there is, is named for it."""
    siblings = [SimpleNamespace(rfilename=name) for name in [*files, "model_index.json"]]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    model = StableDiffusionConfig(kind="stable_diffusion", path="nobody/half")
    if variant is ConfigError:
        with pytest.raises(ConfigError, match=r"variants ema, fp16 alone; set model\.variant"):
            with_its_variant(model, NETWORKS)
    else:
        assert with_its_variant(model, NETWORKS).variant == variant
    asked = model.model_copy(update={"variant": "ema"})
    assert with_its_variant(asked, NETWORKS) is asked


@pytest.mark.parametrize("name", PIPELINE_KINDS)
def test_init_and_sample_know_the_same_pipelines(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.42.1"}))
    assert kind_of(str(tmp_path)) == pipeline_kind(str(tmp_path)) == PIPELINE_KINDS[name]
