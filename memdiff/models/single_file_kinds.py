"""What a checkpoint in one file holds, by its tensors' names.

Stable Diffusion 1.x and SDXL are read, everything else is refused as what it is. The names are
those of the original code (Rombach et al. 2022), under which people share such files. No torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from memdiff.errors import ConfigError
from memdiff.runtime.weight_headers import read_header

SUFFIXES = (".safetensors", ".ckpt")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_L = {"stable_diffusion": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = "conditioner.embedders.1.model."  # SDXL's second text encoder
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"

Shapes = Mapping[str, Sequence[int]]  # of every tensor in a file, by its name

# What a part of a name gives away, before the two kinds that are read. The first that is met decides.
OTHERS: tuple[tuple[str, str], ...] = (
    ("lora_", "a LoRA; give it as adapter.path, or to --mix"),
    ("lokr_", "a LoKr adapter, which memdiff does not apply"),
    ("hada_", "a LoHa adapter, which memdiff does not apply"),
    ("control_model.", "a ControlNet, which memdiff does not train"),
    ("joint_blocks.", "Stable Diffusion 3, a flow-matching transformer, which memdiff does not train"),
    ("double_blocks.", "Flux or one of its kind, a flow-matching transformer, which memdiff does not train"),
    (
        "single_transformer_blocks.",
        "Flux or one of its kind, a flow-matching transformer, which memdiff does not train",
    ),
    ("clip_txt_mapper.", "Stable Cascade, which memdiff does not train"),
    ("motion_modules.", "AnimateDiff's motion modules, which memdiff does not train"),
    ("conditioner.embedders.0.model.", "SDXL's refiner, which memdiff does not train; give the base model"),
    ("edm_mean", "Playground 2.5, whose noise schedule has no betas; memdiff does not train it"),
    (
        "cond_stage_model.model.",
        "Stable Diffusion 2.x; memdiff reads 1.x and SDXL in one file: give its diffusers folder",
    ),
)
ALONE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("model_ema.",), "the averaged weights (EMA) alone, under names of their own; give the pruned file of the model"),
    (("down_blocks.", "conv_in."), "a UNet of diffusers alone; give the whole pipeline folder"),
    (("encoder.", "decoder.", VAE), "a VAE alone; give the model's file as model.path"),
    (("text_model.", "cond_stage_model.", "conditioner."), "a text encoder alone; give the model's file"),
)  # fmt: skip


def shapes_of(file: Path) -> Shapes | None:
    """From the header of a .safetensors file, in milliseconds; None of a .ckpt, which is to be read for that.

    Raises ConfigError where it is no whole safetensors file.
    """
    if file.suffix != ".safetensors":
        return None
    try:
        return {name: tensor.shape for name, tensor in read_header(file).tensors.items()}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{file} is not a whole safetensors file: {reason}; fetch it again") from None


def kind_of_file(file: Path, shapes: Shapes) -> str:
    """stable_diffusion or sdxl. Raises ConfigError for everything else, by name."""
    for part, what in OTHERS:
        if any(part in name for name in shapes):
            raise _refused(file, what)
    if any(name.startswith(UNET) for name in shapes):
        channels = (*shapes.get(FIRST_LAYER, ()), 0, 0)[1]
        if channels not in (0, 4):
            kind = {9: "an inpainting model", 8: "InstructPix2Pix"}.get(channels, f"a model of {channels} channels")
            raise _refused(file, f"{kind}; memdiff trains text-to-image models, whose UNets take 4 channels")
        kind = "sdxl" if any(name.startswith("conditioner.") for name in shapes) or _has(shapes, "label_emb.") else None
        return kind or "stable_diffusion"
    for beginnings, what in ALONE:
        if any(name.startswith(beginnings) for name in shapes):
            raise _refused(file, what)
    raise _refused(file, f"nothing that memdiff knows, such as {next(iter(shapes), 'no tensor')!s:.80}")


def parts_in(shapes: Shapes, kind: str) -> dict[str, bool]:
    """Whether the file holds each of a model's networks, by their names in a pipeline."""
    prefixes = {"unet": UNET, "vae": VAE, "text_encoder": CLIP_L[kind]}
    if kind == "sdxl":
        prefixes["text_encoder_2"] = OPEN_CLIP
    return {part: any(name.startswith(prefix) for name in shapes) for part, prefix in prefixes.items()}


def check_shapes(file: Path, shapes: Shapes, kind: str, *, with_vae: bool, with_config: bool) -> None:
    """Raises ConfigError where the file is of another kind than the recipe says, or lacks a network.

    `with_vae`: the model's own is needed. `with_config`: a scheduler was given beside the file.
    """
    actual = kind_of_file(file, shapes)
    if actual != kind:
        raise ConfigError(f"model.path {file} holds a model of kind {actual}; set model.kind: {actual}")
    lacking = [part for part, there in parts_in(shapes, kind).items() if not there and (part != "vae" or with_vae)]
    if lacking:
        hint = "set model.vae" if lacking == ["vae"] else "give the whole model's file"
        raise ConfigError(f"model.path {file} holds no {', no '.join(lacking)}; {hint}")
    if "v_pred" in shapes and not with_config:
        raise ConfigError(
            f"model.path {file} says that it predicts v; set model.config to a diffusers folder whose scheduler has "
            "prediction_type v_prediction"
        )


def check_vae_shapes(file: Path, shapes: Shapes) -> None:
    """Raises ConfigError where the file holds no AutoencoderKL: alone, or within a whole model."""
    own = {name.removeprefix(VAE) for name in shapes if name.startswith(VAE) or not any(VAE in name for name in shapes)}
    if not {"decoder.conv_in.weight", "post_quant_conv.weight"} <= own:
        raise ConfigError(
            f"model.vae {file} holds no VAE of Stable Diffusion or SDXL; TAESD is read as a folder or hub id, such as "
            "madebyollin/taesd"
        )


def _has(shapes: Shapes, part: str) -> bool:
    return any(name.startswith(UNET + part) for name in shapes)


def _refused(file: Path, what: str) -> ConfigError:
    return ConfigError(f"{file} holds {what}")
