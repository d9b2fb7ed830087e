"""A Hugging Face image classifier as a reward, its label chosen by name.

The image processor's numbers are read from its JSON and applied as tensor code: differentiable, and without the
torchvision that transformers' fast processors import.
Shapes: B images, L labels, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ViTConfig
from transformers.image_processing_base import ImageProcessingMixin

from memdiff.errors import ConfigError
from memdiff.models.config import Precision
from memdiff.models.folder import refuse_unreachable
from memdiff.models.networks import check_report
from memdiff.rewards.backbones import Backbones
from memdiff.rewards.confidence import confidence_score, has_gradient
from memdiff.rewards.config import ClassifierConfig
from memdiff.rewards.preprocess import Interpolation, resize, standardise, to_rgb
from memdiff.rewards.pretrained import freeze, network_dtype, run_network

CONFIG = "config.json"
PIL_INTERPOLATION: Mapping[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
ARCHITECTURES: Mapping[str, Any] = {  # of skeletons, which read no file for these
    "rizvandwiki/gender-classification": ViTConfig,  # ViT-B/16 at 224, the library's default
    "microsoft/resnet-50": ResNetConfig,
}


@dataclass(frozen=True)
class ImageProcessing:
    """Resize, crop and normalise as a transformers image processor's JSON says. Sizes in pixels."""

    resize_to: tuple[int, int] | None  # (height, width)
    resize_shortest: int | None
    crop: tuple[int, int] | None
    interpolation: Interpolation
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def from_json(cls, config: Mapping[str, Any], source: str) -> Self:
        """From preprocessor_config.json. Raises ConfigError for a resize that is not known here."""
        size = config.get("size", 224)
        if isinstance(size, int):
            size = {"height": size, "width": size} if "crop_pct" not in config else {"shortest_edge": size}
        crop = config.get("crop_size") if config.get("do_center_crop") else None
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"]) if crop else None
        shortest = size.get("shortest_edge")
        if shortest and config.get("crop_pct") and shortest < 384:
            # ConvNeXt's and ResNet's rule: resize to size / crop_pct, then crop to size.
            shortest, crop = int(shortest / config["crop_pct"]), (shortest, shortest)
        exact = None if shortest else (size.get("height", 0), size.get("width", 0))
        resample = config.get("resample", 2)
        if (exact and 0 in exact) or resample not in PIL_INTERPOLATION:
            raise ConfigError(f"{source}: its image processor's size {size} or resample {resample} is not supported")
        do_resize = config.get("do_resize", True)
        plain = not config.get("do_normalize", True)
        return cls(
            resize_to=exact if do_resize else None,
            resize_shortest=shortest if do_resize else None,
            crop=crop,
            interpolation=PIL_INTERPOLATION[resample],
            mean=(0.0, 0.0, 0.0) if plain else config["image_mean"],
            std=(1.0, 1.0, 1.0) if plain else config["image_std"],
        )

    @property
    def has_a_size(self) -> bool:
        """Whether images of every size become images of one."""
        return self.crop is not None or self.resize_to is not None

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1] -> what the network reads: B 3 height width."""
        images_BCHW = to_rgb(images_BCHW)
        height, width = images_BCHW.shape[-2:]
        if self.resize_shortest:
            shorter = min(height, width)
            target = (self.resize_shortest * height // shorter, self.resize_shortest * width // shorter)
            images_BCHW = resize(images_BCHW, target, self.interpolation)
        elif self.resize_to:
            images_BCHW = resize(images_BCHW, self.resize_to, self.interpolation)
        if self.crop:
            top = (images_BCHW.shape[-2] - self.crop[0]) // 2
            left = (images_BCHW.shape[-1] - self.crop[1]) // 2
            images_BCHW = images_BCHW[..., top : top + self.crop[0], left : left + self.crop[1]]
        return standardise(images_BCHW, self.mean, self.std)


class ImageClassifier:
    """images_BCHW in [0, 1] -> the logits of all labels, B L. Labels of one network share it."""

    def __init__(self, network: Any, processing: ImageProcessing, precision: Precision, device: torch.device) -> None:
        """`network` is frozen and moved to `device` in its precision."""
        self.network, self._processing, self._dtype = network, processing, network_dtype(precision, device)
        freeze(network, self._dtype, device)

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return run_network(lambda x: self.network(x).logits, self._processing(images_BCHW), self._dtype)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The last hidden state, averaged over its tokens or pixels: B D fp32."""

        def last_hidden(x: torch.Tensor) -> torch.Tensor:
            hidden = self.network(x, output_hidden_states=True).hidden_states[-1]
            return hidden.mean(dim=1 if hidden.ndim == 3 else (2, 3))  # B tokens D of a transformer, B D h w else

        return run_network(last_hidden, self._processing(images_BCHW), self._dtype)


class ClassifierReward:
    """Scores the probability of one label. Fulfils memdiff.rewards.reward.Reward."""

    def __init__(self, config: ClassifierConfig, backbone: ImageClassifier, label: int) -> None:
        """`label` is the place of the label's logit."""
        self.config, self.differentiable = config, has_gradient(config)
        self.backbone, self._label = backbone, label

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The image classifier, the only network of this reward."""
        return (self.backbone.network,)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """What `mode` makes of the label's probability, B fp32; prompts play no part."""
        return self.head(self.backbone(images_BCHW), prompts)

    def head(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The same from all labels' logits, B L."""
        del prompts
        return confidence_score(outputs.log_softmax(dim=1)[:, self._label], self.config).float()

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """The last hidden state, averaged over its tokens or pixels: B D fp32."""
        return self.backbone.features(images_BCHW)


def load_image_classifier(
    config: ClassifierConfig, device: torch.device, backbones: Backbones | None = None
) -> ClassifierReward:
    """From a folder or the hub. Raises ConfigError in one line."""
    backbone = (backbones or Backbones()).once(_key(config), lambda: _load_network(config, device))
    return ClassifierReward(config, backbone, _label_index(backbone.network.config.label2id, config))


def _key(config: ClassifierConfig) -> tuple[str, str | None, Precision]:
    return config.path, config.revision, config.precision


def _load_network(config: ClassifierConfig, device: torch.device) -> ImageClassifier:
    refuse_unreachable("reward classifier", config.path, config.revision, CONFIG)
    try:
        network, report = AutoModelForImageClassification.from_pretrained(
            config.path,
            revision=config.revision,
            trust_remote_code=False,  # else transformers asks the person whether to run what lies in the folder
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        processing, _ = ImageProcessingMixin.get_image_processor_dict(config.path, revision=config.revision)
    except Exception as error:  # a damaged, hostile or foreign file ends in whatever exception its bytes lead to
        raise ConfigError(
            f"reward classifier {config.path} can't be loaded ({_reason(error)}). Give a folder with config.json, "
            f"preprocessor_config.json and weights, or fetch a hub id first: hf download {config.path}"
        ) from None
    check_report(network, report, name=f"reward classifier {config.path}")
    _label_index(network.config.label2id, config)  # a label that it does not have is told before it is moved and tried
    processing = ImageProcessing.from_json(processing, config.path)
    backbone = ImageClassifier(network, processing, config.precision, device)
    if processing.has_a_size:
        _try_on_a_blank_image(backbone, config, device)
    return backbone


def _try_on_a_blank_image(backbone: ImageClassifier, config: ClassifierConfig, device: torch.device) -> None:
    """Raises ConfigError where the network does not take what the image processor makes."""
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, 32, 32, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # shapes that don't fit end in whatever exception the architecture leads to
        raise ConfigError(
            f"reward classifier {config.path}: its network does not take what its preprocessor_config.json makes "
            f"({_reason(error)}); fetch its files again"
        ) from None


def skeleton_image_classifier(
    config: ClassifierConfig, device: torch.device, backbones: Backbones | None = None
) -> ClassifierReward:
    """The same network without its weights; images are resized to its side, and its first label is scored."""
    backbone = (backbones or Backbones()).once(_key(config), lambda: _skeleton_network(config, device))
    return ClassifierReward(config, backbone, 0)


def _skeleton_network(config: ClassifierConfig, device: torch.device) -> ImageClassifier:
    written = ARCHITECTURES.get(config.path)
    if not written:
        refuse_unreachable("reward classifier", config.path, config.revision, CONFIG)
    try:
        architecture = (
            written()
            if written
            else AutoConfig.from_pretrained(config.path, revision=config.revision, trust_remote_code=False)
        )
    except Exception as error:
        raise ConfigError(
            f"reward classifier {config.path} has no config that can be read ({_reason(error)})"
        ) from None
    network = AutoModelForImageClassification.from_config(architecture, trust_remote_code=False)
    side = getattr(architecture, "image_size", 224)
    half = (0.5, 0.5, 0.5)
    processing = ImageProcessing((side, side), None, None, "bilinear", half, half)
    return ImageClassifier(network, processing, config.precision, device)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _label_index(label2id: Mapping[str, int], config: ClassifierConfig) -> int:
    """By name, whatever its case: positions differ between models."""
    matches = [int(index) for label, index in label2id.items() if label.lower() == config.label.lower()]
    if len(matches) != 1:
        known = ", ".join(list(label2id)[:10])
        more = f" and {len(label2id) - 10} more" if len(label2id) > 10 else ""
        raise ConfigError(f"reward classifier {config.path} has no label {config.label!r}; it has {known}{more}")
    return matches[0]
