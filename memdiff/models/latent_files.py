"""Stable Diffusion and SDXL policies from pipeline folders, hub ids and single files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from memdiff.errors import ConfigError
from memdiff.models.architectures import LATENTS, SDXL_BASE, STABLE_DIFFUSION_1, LatentArchitecture
from memdiff.models.config import SdxlConfig, Size, StableDiffusionConfig
from memdiff.models.latent import LatentParts, LatentPolicy
from memdiff.models.networks import class_of_part, pipeline_folder, read_part, wrong_part
from memdiff.models.options import ModelOptions
from memdiff.models.sampler_config import SamplerConfig
from memdiff.models.scheduler import ddim_scheduler, tell_of_chain
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.source import no_pipeline, read_config, read_scheduler
from memdiff.models.stable_diffusion import StableDiffusionPolicy
from memdiff.models.vae_files import (
    choose_vae_dtype,
    read_vae,
    read_vae_config,
    vae_architecture,
    vae_class,
)


def load_latent(
    model: StableDiffusionConfig | SdxlConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> LatentPolicy:
    """Reads each network in the dtype it runs in. Raises ConfigError in one line where that can't be done."""
    if model.in_one_file:
        parts, vae_dtype = _read_one_file(model, options.dtype)
    else:
        vae, vae_dtype, vae_name = _read_vae(model, options.dtype, None)
        parts = read_parts(model, vae, vae_name, dtype=options.dtype)
    policy = _policy_class(model)(parts, sampler, options, device=device, vae_dtype=vae_dtype)
    tell_of_chain(parts.scheduler, sampler, policy.schedule)
    return policy


def _read_one_file(model: StableDiffusionConfig | SdxlConfig, dtype: torch.dtype) -> tuple[LatentParts, torch.dtype]:
    """The parts of a model in one file, and what its VAE runs in."""
    from memdiff.models.single_file import read_single_file, read_tokenizers

    tokenizers = read_tokenizers(model)
    architecture = read_architecture(model)
    if model.vae is None:
        vae, vae_dtype = None, choose_vae_dtype(model, architecture.vae, dtype)
    else:
        network, vae_dtype, name = _read_vae(model, dtype, architecture.vae)
        vae = network, name
    return read_single_file(model, architecture, tokenizers, dtype=dtype, vae=vae, vae_dtype=vae_dtype), vae_dtype


def _read_vae(
    model: StableDiffusionConfig | SdxlConfig, dtype: torch.dtype, own: Mapping[str, Any] | None
) -> tuple[Any, torch.dtype, str]:
    """As `read_vae`, one file among what it may come from; `own` is the config of the model's VAE, None: to be read."""
    file = model.vae_file
    if file is None:
        return read_vae(model, dtype)
    from memdiff.models.single_file import read_vae_file

    if own is None:
        own = read_vae_config(model.path, key="model.path", subfolder="vae", revision=model.revision)
    vae_dtype = choose_vae_dtype(model, own, dtype)
    return read_vae_file(file, own, vae_dtype), vae_dtype, f"the VAE {file}"


def skeleton_latent(
    model: StableDiffusionConfig | SdxlConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> LatentPolicy:
    """The same without its weights. Under fake tensors nothing is allocated.

    Raises ConfigError where the architecture is neither written down nor to be read.
    """
    with unset_fake_temporarily():
        architecture = LATENTS.get(model.path) or read_architecture(model)
        if model.vae is not None and model.vae_file is None:  # one file has the architecture of the model's own
            architecture = replace(architecture, vae=vae_architecture(model.vae, architecture.vae))
    parts = skeleton_parts(architecture, size=model.size)
    with unset_fake_temporarily():
        parts = replace(parts, scheduler=DDIMScheduler(**architecture.scheduler))
    vae_dtype = choose_vae_dtype(model, dict(architecture.vae), options.dtype)
    return _policy_class(model)(parts, sampler, options, device=device, vae_dtype=vae_dtype)


def _policy_class(model: StableDiffusionConfig | SdxlConfig) -> type[LatentPolicy]:
    return SdxlPolicy if isinstance(model, SdxlConfig) else StableDiffusionPolicy


class NoTokenizer:
    """Stands in for a CLIP tokenizer where the words don't matter: ends of text only."""

    def __init__(self, length: int, end: int) -> None:
        self.model_max_length, self.end = length, end

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, B L each."""
        del options
        ids = torch.full((len(texts), self.model_max_length), self.end)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def skeleton_parts(architecture: LatentArchitecture, *, size: Size = (None, None)) -> LatentParts:
    """An architecture's networks, with the weights torch starts them with.

    They can't be saved as a pipeline: there are no tokenizers.
    """
    configs = [CLIPTextConfig(**config) for config in architecture.text_encoders]
    names = [f"text_encoder{number}" for number in ("", "_2")[: len(configs)]]
    encoders = [CLIPTextModel(configs[0]), *(CLIPTextModelWithProjection(config) for config in configs[1:])]
    tokenizers = [NoTokenizer(config.max_position_embeddings, config.vocab_size - 1) for config in configs]
    return LatentParts(
        unet=UNet2DConditionModel(**architecture.unet),
        vae=vae_class(architecture.vae).from_config(dict(architecture.vae)),
        scheduler=DDIMScheduler(**architecture.scheduler),
        text_encoders=dict(zip(names, encoders, strict=True)),
        tokenizers={name.replace("text_encoder", "tokenizer"): t for name, t in zip(names, tokenizers, strict=True)},
        size=size,
        zero_negative=architecture.zero_negative,
    )


def read_architecture(model: StableDiffusionConfig | SdxlConfig) -> LatentArchitecture:
    """From a pipeline folder's or hub id's own configs; of a model in one file as `model.config` says.

    Raises ConfigError.
    """
    source, revision = model.path, model.revision
    if model.in_one_file:
        if model.config is None:
            return SDXL_BASE if isinstance(model, SdxlConfig) else STABLE_DIFFUSION_1
        source, revision = model.config, None
    numbers = ("", "_2") if isinstance(model, SdxlConfig) else ("",)
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    scheduler = read_scheduler(source, revision)
    try:
        index: Any = DiffusionPipeline.load_config(source, revision=revision)
        encoders = [
            CLIPTextConfig.from_pretrained(source, subfolder=f"text_encoder{number}", **where).to_dict()
            for number in numbers
        ]
    except (OSError, ValueError, KeyError) as error:
        raise no_pipeline(source, error) from None
    return LatentArchitecture(
        unet=read_config(UNet2DConditionModel, source, part="unet", revision=revision),
        vae=read_vae_config(source, key="model.path", subfolder="vae", revision=revision),
        text_encoders=tuple(encoders),
        scheduler={key: value for key, value in scheduler.config.items() if not key.startswith("_")},
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def read_parts(
    model: StableDiffusionConfig | SdxlConfig, vae: Any, vae_name: str, *, dtype: torch.dtype
) -> LatentParts:
    """Everything but the VAE from the pipeline, on the host; safety checkers and image encoders are left out."""
    options: dict[str, Any] = {"vae": vae, "revision": model.revision, "variant": model.variant}
    options |= {"image_encoder": None, "feature_extractor": None}
    if isinstance(model, SdxlConfig):
        pipeline_class, options = StableDiffusionXLPipeline, options | {"add_watermarker": False}
    else:
        pipeline_class = StableDiffusionPipeline
        options |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        folder = pipeline_folder(model.path, **options)
        networks = read_networks(model, folder, dtype=dtype)
        # Its weights are read by now, and diffusers would refuse folders in which a part has none of the variant.
        pipeline: Any = pipeline_class.from_pretrained(folder, **options | {"variant": None}, **networks)
    except (OSError, ValueError, RuntimeError) as error:
        raise no_pipeline(model.path, error) from None
    missing = [name for name in text_components(pipeline) if pipeline.components.get(name) is None]
    if missing:
        raise ConfigError(f"model.path {model.path}: the pipeline has no {missing[0]}; all text encoders are needed")
    return parts_of(pipeline, size=model.size, vae_name=vae_name)


def read_networks(
    model: StableDiffusionConfig | SdxlConfig, folder: Path, *, dtype: torch.dtype
) -> dict[str, torch.nn.Module]:
    """The UNet and the text encoders that the pipeline has, by their names in it."""
    index = DiffusionPipeline.load_config(folder)
    unet_class = class_of_part(index, "unet")
    if unet_class is None or unet_class[1] != "UNet2DConditionModel":
        raise wrong_part(model.path, "unet", "UNet2DConditionModel", unet_class)
    classes: dict[str, Any] = {"unet": UNet2DConditionModel}
    for part in ("text_encoder", "text_encoder_2"):
        named = class_of_part(index, part)
        if named is not None:
            kind = getattr(transformers, named[1], None) if named[0] == "transformers" else None
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                raise wrong_part(model.path, part, "text model of transformers", named)
            classes[part] = kind
    return {
        part: read_part(kind, folder, part, source=model.path, variant=model.variant, dtype=dtype)
        for part, kind in classes.items()
    }


def text_components(pipeline: Any) -> list[str]:
    """Names of tokenizers and text encoders."""
    numbers = ("", "_2") if isinstance(pipeline, StableDiffusionXLPipeline) else ("",)
    return [f"{kind}{number}" for kind in ("tokenizer", "text_encoder") for number in numbers]


def parts_of(pipeline: Any, *, size: Size = (None, None), vae_name: str = "the VAE") -> LatentParts:
    """The parts of a loaded diffusers pipeline: they are its own modules, not copies."""
    text = {name: pipeline.components[name] for name in text_components(pipeline)}
    return LatentParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler=ddim_scheduler(pipeline.scheduler),
        text_encoders={name: encoder for name, encoder in text.items() if name.startswith("text_encoder")},
        tokenizers={name: tokenizer for name, tokenizer in text.items() if name.startswith("tokenizer")},
        size=size,
        zero_negative=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        vae_name=vae_name,
    )
