"""Stable Diffusion and SDXL policies from pipeline folders and hub ids."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from memdiff.errors import ConfigError
from memdiff.models.architectures import LATENTS, LatentArchitecture
from memdiff.models.config import SamplerConfig, SdxlConfig, StableDiffusionConfig
from memdiff.models.latent import LatentParts, LatentPolicy
from memdiff.models.networks import class_of_part, pipeline_folder, read_network, read_part, wrong_part
from memdiff.models.options import ModelOptions
from memdiff.models.precision import DTYPES
from memdiff.models.scheduler import ddim_scheduler
from memdiff.models.sdxl import SdxlPolicy
from memdiff.models.source import no_pipeline, quiet_hub, read_config, read_scheduler
from memdiff.models.stable_diffusion import StableDiffusionPolicy

FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"


def load_latent(
    model: StableDiffusionConfig | SdxlConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> LatentPolicy:
    """Reads each network in the dtype it runs in. Raises ConfigError in one line where that can't be done."""
    vae, vae_dtype, vae_name = read_vae(model, options.dtype)
    parts = read_parts(model, vae, vae_name, dtype=options.dtype)
    return _policy_class(model)(parts, sampler, options, device=device, vae_dtype=vae_dtype)


def skeleton_latent(
    model: StableDiffusionConfig | SdxlConfig, sampler: SamplerConfig, options: ModelOptions, *, device: torch.device
) -> LatentPolicy:
    """The same without its weights. Under fake tensors nothing is allocated.

    Raises ConfigError where the architecture is neither written down nor to be read.
    """
    with unset_fake_temporarily():
        architecture = LATENTS.get(model.path) or read_architecture(model)
        if model.vae == FP16_VAE:  # SDXL's own, retrained to stay within fp16
            architecture = replace(architecture, vae={**architecture.vae, "force_upcast": False})
        elif model.vae is not None:
            refuse_other_vae(model.vae, AutoencoderKL.load_config(model.vae), key="model.vae")
            architecture = replace(architecture, vae=read_config(AutoencoderKL, model.vae, key="model.vae"))
    parts = skeleton_parts(architecture, resolution=model.resolution)
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


def skeleton_parts(architecture: LatentArchitecture, *, resolution: int | None = None) -> LatentParts:
    """An architecture's networks, with the weights torch starts them with.

    They can't be saved as a pipeline: there are no tokenizers.
    """
    configs = [CLIPTextConfig(**config) for config in architecture.text_encoders]
    names = [f"text_encoder{number}" for number in ("", "_2")[: len(configs)]]
    encoders = [CLIPTextModel(configs[0]), *(CLIPTextModelWithProjection(config) for config in configs[1:])]
    tokenizers = [NoTokenizer(config.max_position_embeddings, config.vocab_size - 1) for config in configs]
    return LatentParts(
        unet=UNet2DConditionModel(**architecture.unet),
        vae=AutoencoderKL(**architecture.vae),
        scheduler=DDIMScheduler(**architecture.scheduler),
        text_encoders=dict(zip(names, encoders, strict=True)),
        tokenizers={name.replace("text_encoder", "tokenizer"): t for name, t in zip(names, tokenizers, strict=True)},
        resolution=resolution,
        zero_negative=architecture.zero_negative,
    )


def read_architecture(model: StableDiffusionConfig | SdxlConfig) -> LatentArchitecture:
    """From a pipeline folder's or hub id's own configs. Raises ConfigError."""
    source, revision = model.path, model.revision
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
        vae=read_config(AutoencoderKL, source, part="vae", revision=revision),
        text_encoders=tuple(encoders),
        scheduler={key: value for key, value in scheduler.config.items() if not key.startswith("_")},
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
    )


def read_vae(model: StableDiffusionConfig | SdxlConfig, dtype: torch.dtype) -> tuple[AutoencoderKL, torch.dtype, str]:
    """(the pipeline's VAE or the one that stands in for it, its dtype, what to call it)."""
    where: dict[str, Any] = {}
    if model.vae is None:
        source, key, name = model.path, "model.path", f"the VAE of {model.path}"
        where = {"subfolder": "vae", "revision": model.revision}
    else:
        source, key, name = model.vae, "model.vae", f"the VAE {model.vae}"
    # A hub id may have no files of the variant; of a folder that is seen.
    variant = model.variant if model.vae is None or Path(model.vae).is_dir() else None
    try:
        with quiet_hub():
            config: Any = AutoencoderKL.load_config(source, **where)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error, key=key) from None
    refuse_other_vae(source, config, key=key)
    vae_dtype = choose_vae_dtype(model, config, dtype)
    part = "vae" if model.vae is None else None
    vae = read_network(AutoencoderKL, source, key=key, part=part, variant=variant, dtype=vae_dtype, **where)
    return vae, vae_dtype, name


def refuse_other_vae(source: str, config: Any, *, key: str) -> None:
    """Raises ConfigError for VAEs of another class, such as TAESD's AutoencoderTiny."""
    name = config.get("_class_name", "AutoencoderKL") if isinstance(config, Mapping) else type(config).__name__
    if name != "AutoencoderKL":
        raise ConfigError(f"{key} {source} holds an {name!s:.80}; memdiff decodes with an AutoencoderKL")


def choose_vae_dtype(
    model: StableDiffusionConfig | SdxlConfig, vae_config: dict[str, Any], dtype: torch.dtype
) -> torch.dtype:
    """What the VAE runs in. SDXL's own overflows in fp16, and says so in its config (`force_upcast`).

    Stable Diffusion's config has the key too, as diffusers' default, and does not mean it: diffusers decodes in fp16.
    """
    overflows = isinstance(model, SdxlConfig) and vae_config.get("force_upcast", True)
    if model.vae_precision == "auto":
        return torch.float32 if overflows and dtype == torch.float16 else dtype
    if model.vae_precision == "fp16" and overflows:
        raise ConfigError(
            f"model.vae_precision fp16: this SDXL VAE overflows in fp16 (force_upcast in its config); use model.vae: "
            f"{FP16_VAE}, or vae_precision: fp32"
        )
    return DTYPES[model.vae_precision]


def read_parts(
    model: StableDiffusionConfig | SdxlConfig, vae: AutoencoderKL, vae_name: str, *, dtype: torch.dtype
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
    return parts_of(pipeline, resolution=model.resolution, vae_name=vae_name)


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


def parts_of(pipeline: Any, *, resolution: int | None = None, vae_name: str = "the VAE") -> LatentParts:
    """The parts of a loaded diffusers pipeline: they are its own modules, not copies."""
    text = {name: pipeline.components[name] for name in text_components(pipeline)}
    return LatentParts(
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler=ddim_scheduler(pipeline.scheduler),
        text_encoders={name: encoder for name, encoder in text.items() if name.startswith("text_encoder")},
        tokenizers={name: tokenizer for name, tokenizer in text.items() if name.startswith("tokenizer")},
        resolution=resolution,
        zero_negative=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        vae_name=vae_name,
    )
