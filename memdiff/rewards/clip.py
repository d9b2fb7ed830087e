"""Rewards on CLIP: LAION aesthetic, PickScore, HPSv2, plain similarity. One network, one preprocessing, three heads.

Scores (e, t: the L2-normalised embeddings of image and prompt, fp32):
    aesthetic        W5 W4 W3 W2 W1 e, affine layers 1024, 128, 64, 16, 1 without activations between them
                     (christophschuhmann/improved-aesthetic-predictor, simple_inference.py: its ReLUs are commented out)
    pickscore        exp(logit_scale) e . t        (Kirstain et al. 2023, and the model card's own code)
    hpsv2            e . t                         (Wu et al. 2023; hpsv2 1.2.0, img_score.py)
    clip_similarity  e . t

Shapes: B images of one call, C channels (1 or 3), H W pixels, S the network's side in pixels, D of the embeddings.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import normalize, pad
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from memdiff.errors import ConfigError
from memdiff.rewards.backbones import Backbones
from memdiff.rewards.clip_heads import AestheticHead, Head, any_prompt, load_aesthetic_head, load_prompt_head
from memdiff.rewards.families_config import AestheticConfig, ClipSimilarityConfig, HpsConfig, PickScoreConfig
from memdiff.rewards.open_clip import config_of, convert_keys
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD, resize, standardise, to_rgb
from memdiff.rewards.pretrained import (
    checkpoint_layers,
    fill_positions,
    find_model,
    freeze,
    network_dtype,
    read_config,
    run_network,
    without_buffers,
)
from memdiff.rewards.weights import find_weights, load_weights
from memdiff.runtime.state_dicts import assign_strictly

ClipPart = AestheticConfig | PickScoreConfig | HpsConfig | ClipSimilarityConfig
Fit = Literal["crop", "pad"]

HPS_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}

CLIP_L_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 768}  # fmt: skip
"""openai/clip-vit-large-patch14: 303,966,208 parameters with its projection."""
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
"""laion/CLIP-ViT-H-14 and what is trained from it (PickScore, HPSv2): 632,076,800 parameters with its projection."""
ARCHITECTURES = {  # of skeletons, which read no file for these
    "openai/clip-vit-large-patch14": CLIP_L_VISION,
    "yuvalkirstain/PickScore_v1": CLIP_H_VISION,
    "xswu/HPSv2": CLIP_H_VISION,
    "adams-story/HPSv2-hf": CLIP_H_VISION,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": CLIP_H_VISION,
}


def fit_square(images_BCHW: torch.Tensor, side: int, fit: Fit) -> torch.Tensor:
    """Bicubic to side x side. crop: shortest edge to `side`, centre cut (CLIP). pad: longest edge, black (HPSv2)."""
    height, width = images_BCHW.shape[-2:]
    if fit == "crop":
        short = min(height, width)
        images_BCHW = resize(images_BCHW, (side * height // short, side * width // short), "bicubic")
        top, left = (images_BCHW.shape[-2] - side) // 2, (images_BCHW.shape[-1] - side) // 2
        return images_BCHW[..., top : top + side, left : left + side]
    scale = side / max(height, width)
    images_BCHW = resize(images_BCHW, (max(1, round(height * scale)), max(1, round(width * scale))), "bicubic")
    rows, columns = side - images_BCHW.shape[-2], side - images_BCHW.shape[-1]
    return pad(images_BCHW, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class ImageTower:
    """images_BCHW in [0, 1] -> L2-normalised embeddings e_BD, fp32 (fp64 where the network is)."""

    def __init__(self, network: CLIPVisionModelWithProjection, fit: Fit, dtype: torch.dtype) -> None:
        assert isinstance(network.config.image_size, int)
        self.network, self.dtype, self.side = network, dtype, network.config.image_size
        self.fit: Fit = fit

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings of a batch."""
        pixels_B3SS = standardise(fit_square(to_rgb(images_BCHW), self.side, self.fit), CLIP_MEAN, CLIP_STD)
        embeds_BD = run_network(lambda x: self.network(pixel_values=x).image_embeds, pixels_B3SS, self.dtype)
        return normalize(embeds_BD, dim=-1)


class ClipReward:
    """Scores CLIP's image embedding with one head: aesthetic, or similarity to the prompt."""

    differentiable = True

    def __init__(self, backbone: ImageTower, head: Head) -> None:
        self.backbone, self._head = backbone, head

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The image network, and the aesthetic head."""
        return (self.backbone.network, *([self._head] if isinstance(self._head, torch.nn.Module) else []))

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Rewards, B fp32. Raises RewardError for an empty prompt where one is needed."""
        return self.head(self.backbone(images_BCHW), prompts)

    def head(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The same from the images' embeddings, B D."""
        return self._head(outputs, prompts).float()

    def scores(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """As a call, B in the precision of the head (fp64 in an fp64 network)."""
        return self._head(self.backbone(images_BCHW), prompts)


def load_clip(part: ClipPart, device: torch.device, backbones: Backbones | None = None) -> ClipReward:
    """A reward from a folder or the hub, frozen, on `device`. Raises ConfigError in one line."""
    config, tensors = _read(part)
    vision, text, logit_scale = _split(tensors)
    backbone = (backbones or Backbones()).once(_key(part), lambda: _load_tower(part, config, vision, device))
    match part:
        case AestheticConfig():
            head: Head = load_aesthetic_head(part, backbone.network.config.projection_dim)
            freeze(head, torch.float32, device)
        case PickScoreConfig():
            if logit_scale is None:
                raise ConfigError(f"{part.path} has no logit_scale, which PickScore multiplies its cosine by")
            head = load_prompt_head(part, config, text, float(logit_scale.float().exp()))
        case HpsConfig() | ClipSimilarityConfig():
            head = load_prompt_head(part, config, text, 1.0)
    return ClipReward(backbone, head)


def _key(part: ClipPart) -> tuple[Any, ...]:
    """All that an image tower is made of."""
    files = (part.format, part.version) if isinstance(part, HpsConfig) else ()
    return (part.path, part.revision, part.precision, part.checkpointing, _fit(part), *files)


def _fit(part: ClipPart) -> Fit:
    return "pad" if isinstance(part, HpsConfig) else "crop"


def _load_tower(
    part: ClipPart, config: CLIPConfig, tensors: dict[str, torch.Tensor], device: torch.device
) -> ImageTower:
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(_vision_config(config))
    assign_strictly(network, tensors, part.path)
    fill_positions(network)
    return _frozen(part, network, device)


def load_image_tower(source: str, device: torch.device) -> ImageTower:
    """CLIP's image network alone, for features: from a folder or the hub, frozen. Raises ConfigError in one line."""
    config = read_config(source, {"clip": CLIPConfig}, revision=None)
    vision, _, _ = _split(without_buffers(load_weights(find_model(source, revision=None))))
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(_vision_config(config))
    assign_strictly(network, vision, source)
    fill_positions(network)
    dtype = network_dtype("auto", device)
    freeze(network, dtype, device)
    return ImageTower(network, "crop", dtype)


def skeleton_clip(part: ClipPart, device: torch.device, backbones: Backbones | None = None) -> ClipReward:
    """The same image network and head without their weights; every prompt's embedding is zeros."""
    backbone = (backbones or Backbones()).once(_key(part), lambda: _skeleton_tower(part, device))
    head: Head = any_prompt
    if isinstance(part, AestheticConfig):
        head = AestheticHead(backbone.network.config.projection_dim)
        freeze(head, torch.float32, device)
    return ClipReward(backbone, head)


def _skeleton_tower(part: ClipPart, device: torch.device) -> ImageTower:
    written = ARCHITECTURES.get(part.path)
    if written is None and isinstance(part, HpsConfig) and part.format == "open_clip":
        written = CLIP_H_VISION
    if written is not None:
        config = CLIPVisionConfig(**written)
    else:
        config = _vision_config(read_config(part.path, {"clip": CLIPConfig}, revision=part.revision))
    return _frozen(part, CLIPVisionModelWithProjection(config), device)


def _frozen(part: ClipPart, network: CLIPVisionModelWithProjection, device: torch.device) -> ImageTower:
    dtype = network_dtype(part.precision, device)
    freeze(network, dtype, device)
    if part.checkpointing:
        checkpoint_layers(network.vision_model.encoder.layers)
    return ImageTower(network, _fit(part), dtype)


def _read(part: ClipPart) -> tuple[CLIPConfig, dict[str, torch.Tensor]]:
    if isinstance(part, HpsConfig) and part.format == "open_clip":
        path = find_weights(part.path, HPS_FILES[part.version], part.revision)
        tensors = load_weights(path)
        return config_of(tensors, str(path)), convert_keys(tensors)
    config = read_config(part.path, {"clip": CLIPConfig}, revision=part.revision)
    return config, without_buffers(load_weights(find_model(part.path, revision=part.revision)))


def _split(
    tensors: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor | None]:
    """(image network's, text network's, logit_scale). What belongs nowhere goes to the first, to be refused."""
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(("text_model.", "text_projection."))}
    vision = {name: tensor for name, tensor in tensors.items() if name not in text and name != "logit_scale"}
    return vision, text, tensors.get("logit_scale")


def _vision_config(config: CLIPConfig) -> CLIPVisionConfig:
    vision_config: Any = config.vision_config
    vision_config.projection_dim = config.projection_dim  # the outer one counts; public configs have 512 inside
    return vision_config
