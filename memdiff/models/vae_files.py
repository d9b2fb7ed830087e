"""VAEs from folders and hub ids: AutoencoderKL, and TAESD's AutoencoderTiny; what each of them runs in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from memdiff.errors import ConfigError
from memdiff.models.architectures import TINY_VAE, TINY_VAES
from memdiff.models.config import SdxlConfig, StableDiffusionConfig
from memdiff.models.networks import read_network
from memdiff.models.precision import DTYPES
from memdiff.models.source import no_pipeline, quiet_hub

FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
CLASSES: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def read_vae(model: StableDiffusionConfig | SdxlConfig, dtype: torch.dtype) -> tuple[Any, torch.dtype, str]:
    """(the pipeline's VAE or the one that stands in for it, its dtype, what to call it)."""
    where: dict[str, Any] = {}
    if model.vae is None:
        source, key, name = model.path, "model.path", f"the VAE of {model.path}"
        where = {"subfolder": "vae", "revision": model.revision}
    else:
        source, key, name = model.vae, "model.vae", f"the VAE {model.vae}"
    # A hub id may have no files of the variant; of a folder that is seen.
    variant = model.variant if model.vae is None or Path(model.vae).is_dir() else None
    config = read_vae_config(source, key=key, **where)
    vae_dtype = choose_vae_dtype(model, config, dtype)
    part = "vae" if model.vae is None else None
    vae = read_network(vae_class(config), source, key=key, part=part, variant=variant, dtype=vae_dtype, **where)
    return vae, vae_dtype, name


def read_vae_config(source: str, *, key: str, **where: Any) -> dict[str, Any]:
    """A VAE's config, its class among it. Raises ConfigError where there is none, or one of another class."""
    try:
        with quiet_hub():
            config: Any = AutoencoderKL.load_config(source, **where)
    except (OSError, ValueError) as error:
        raise no_pipeline(source, error, key=key) from None
    name = config.get("_class_name", "AutoencoderKL") if isinstance(config, Mapping) else type(config).__name__
    if not isinstance(name, str) or name not in CLASSES:
        raise ConfigError(
            f"{key} {source} holds a VAE of class {name!s:.80}; memdiff decodes with an AutoencoderKL, or TAESD's "
            "AutoencoderTiny"
        )
    return {"_class_name": name} | {key: value for key, value in config.items() if not key.startswith("_")}


def vae_class(config: Mapping[str, Any]) -> Any:
    """The class that a config names; AutoencoderKL where it names none."""
    return CLASSES[config.get("_class_name", "AutoencoderKL")]


def vae_architecture(source: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the VAE that stands in for a pipeline's `own`: what is written down, or read from its files."""
    if source == FP16_VAE:  # SDXL's own, retrained to stay within fp16
        return {**own, "force_upcast": False}
    return TINY_VAE if source in TINY_VAES else read_vae_config(source, key="model.vae")


def choose_vae_dtype(
    model: StableDiffusionConfig | SdxlConfig, vae_config: Mapping[str, Any], dtype: torch.dtype
) -> torch.dtype:
    """What the VAE runs in. SDXL's own overflows in fp16, and says so in its config (`force_upcast`).

    Stable Diffusion's config has the key too, as diffusers' default, and does not mean it: diffusers decodes in fp16.
    TAESD has no activation that large.
    """
    own_kind = vae_class(vae_config) is AutoencoderKL
    overflows = own_kind and isinstance(model, SdxlConfig) and vae_config.get("force_upcast", True)
    if model.vae_precision == "auto":
        return torch.float32 if overflows and dtype == torch.float16 else dtype
    if model.vae_precision == "fp16" and overflows:
        raise ConfigError(
            f"model.vae_precision fp16: this SDXL VAE overflows in fp16 (force_upcast in its config); use model.vae: "
            f"{FP16_VAE}, or vae_precision: fp32"
        )
    return DTYPES[model.vae_precision]
