"""Rewards as networks without their weights, for plans: nothing is downloaded, and scores mean nothing.

Architectures are written down for the public models that memdiff names; for others the folder's or the hub's config is
read. What can't run on fake tensors stands aside with the bytes that the recipe declares for it (`gpu_mib`).
"""

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    ResNetConfig,
    ViTConfig,
)

from memdiff.embedded.classifiers import new_classifier
from memdiff.errors import ConfigError
from memdiff.placement import place, upload
from memdiff.rewards.build import weighted_part
from memdiff.rewards.classifier import ClassifierReward, ImageProcessing
from memdiff.rewards.clip import AestheticHead, ClipPart, ClipReward, Head, ImageTower
from memdiff.rewards.confidence import has_gradient
from memdiff.rewards.config import AnyPart, ClassifierConfig, DigitsConfig, PythonConfig
from memdiff.rewards.detection import DetectionReward
from memdiff.rewards.digits import DigitsReward
from memdiff.rewards.families_config import (
    AestheticConfig,
    ClipSimilarityConfig,
    DetectionConfig,
    HpsConfig,
    ImageRewardConfig,
    JpegConfig,
    PickScoreConfig,
)
from memdiff.rewards.image_reward import LENGTH, ImageReward, ImageRewardNet, text_config, vision_config
from memdiff.rewards.jpeg import load_jpeg
from memdiff.rewards.pretrained import checkpoint_layers, freeze, network_dtype, read_config
from memdiff.rewards.reward import Reward
from memdiff.rewards.weighted import Features, WeightedReward

CLIP_L_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 768}  # fmt: skip
"""openai/clip-vit-large-patch14: 303,966,208 parameters with its projection."""
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
"""laion/CLIP-ViT-H-14 and what is trained from it (PickScore, HPSv2): 632,076,800 parameters with its projection."""
CLIPS = {
    "openai/clip-vit-large-patch14": CLIP_L_VISION,
    "yuvalkirstain/PickScore_v1": CLIP_H_VISION,
    "xswu/HPSv2": CLIP_H_VISION,
    "adams-story/HPSv2-hf": CLIP_H_VISION,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": CLIP_H_VISION,
}
CLASSIFIERS: dict[str, Any] = {
    "rizvandwiki/gender-classification": ViTConfig(),  # ViT-B/16 at 224, the library's default
    "microsoft/resnet-50": ResNetConfig(),
}
DETECTORS = {
    "google/owlvit-base-patch32": OwlViTConfig,
    "google/owlv2-base-patch16-ensemble": lambda: Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}),
}
MIB = 2**20


def untrained_weighted(parts: Sequence[AnyPart], *, device: torch.device) -> WeightedReward:
    """What `build_weighted` gives, without weights; its networks are on `device`."""
    return WeightedReward(
        [weighted_part(part, *_reward(part, device)) for part in parts],
        device=device,
    )


def _reward(part: AnyPart, device: torch.device) -> tuple[Reward, Features | None]:
    match part:
        case AestheticConfig() | PickScoreConfig() | HpsConfig() | ClipSimilarityConfig():
            clip = _clip(part, device)
            return clip, clip.tower
        case ImageRewardConfig():
            return _image_reward(part, device), None
        case ClassifierConfig():
            classifier = _Classifier(part, device)
            return classifier, classifier.features
        case DigitsConfig():
            digits = _Digits(part, device)
            return digits, digits.features
        case DetectionConfig():
            return _detection(part, device), None
        case JpegConfig():
            return (_Aside(0, differentiable=False) if part.measure == "size" else load_jpeg(part)), None
        case PythonConfig():
            return _Aside(part.gpu_mib * MIB, differentiable=part.differentiable, copies=True), None
        case _:
            assert_never(part)


class _Aside:
    """A reward that runs outside the plan: it takes the bytes that are declared for it while it scores.

    `copies`: it is given images of its own, as a user's function is.
    """

    networks: Sequence[torch.nn.Module] = ()

    def __init__(self, num_bytes: int, *, differentiable: bool, copies: bool = False) -> None:
        self.num_bytes, self.differentiable, self.copies = num_bytes, differentiable, copies

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """B scores."""
        del prompts
        held = torch.empty(self.num_bytes, dtype=torch.uint8, device=images_BCHW.device)
        own_BCHW = images_BCHW.clone() if self.copies else images_BCHW
        scores_B = own_BCHW.float().mean(dim=(1, 2, 3))
        del held
        return scores_B


class _AnyPrompt:
    """The dot product with some prompt's embedding."""

    def __call__(self, e_BD: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """B scores."""
        t_BD = torch.zeros(len(prompts), e_BD.shape[1])
        return (e_BD * upload(t_BD, e_BD.device)).sum(dim=-1)


def _clip(part: ClipPart, device: torch.device) -> ClipReward:
    written = CLIPS.get(part.path)
    if written is not None or (isinstance(part, HpsConfig) and part.format == "open_clip"):
        config = CLIPVisionConfig(**(written or CLIP_H_VISION))
    else:
        whole: Any = read_config(part.path, {"clip": CLIPConfig}, revision=part.revision)
        config = whole.vision_config
        config.projection_dim = whole.projection_dim
    network, dtype = CLIPVisionModelWithProjection(config), network_dtype(part.precision, _kind(device))
    freeze(network, dtype, device)
    if part.checkpointing:
        checkpoint_layers(network.vision_model.encoder.layers)
    head: Head = _AnyPrompt()
    if isinstance(part, AestheticConfig):
        head = AestheticHead(config.projection_dim)
        freeze(head, torch.float32, device)
    return ClipReward(ImageTower(network, "pad" if isinstance(part, HpsConfig) else "crop", dtype), head)


def _image_reward(part: ImageRewardConfig, device: torch.device) -> ImageReward:
    reward = ImageReward(
        ImageRewardNet(vision_config(), text_config()),
        _NoWords(),  # pyright: ignore[reportArgumentType]
        prompt=part.prompt,
        dtype=network_dtype(part.precision, _kind(device)),
        checkpointing=part.checkpointing,
    )
    place(reward.net, device)
    return reward


class _NoWords:
    """Token ids of nothing in particular."""

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * LENGTH for _ in texts], "attention_mask": [[1] * LENGTH for _ in texts]}


class _Classifier(ClassifierReward):
    def __init__(self, config: ClassifierConfig, device: torch.device) -> None:
        self.config, self.differentiable, self._label = config, has_gradient(config), 0
        written = CLASSIFIERS.get(config.path)
        try:
            architecture = written or AutoConfig.from_pretrained(config.path, revision=config.revision)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ConfigError(f"reward classifier {config.path} has no config that can be read ({reason})") from None
        network = AutoModelForImageClassification.from_config(architecture)
        side = getattr(architecture, "image_size", 224)
        half = (0.5, 0.5, 0.5)
        self._processing = ImageProcessing((side, side), None, None, "bilinear", half, half)
        self._dtype = network_dtype(config.precision, _kind(device))
        freeze(network, self._dtype, device)
        self._network = network


class _Digits(DigitsReward):
    def __init__(self, config: DigitsConfig, device: torch.device) -> None:
        self.config, self.differentiable = config, has_gradient(config)
        self._network = new_classifier(config.classifier).eval().requires_grad_(False)
        place(self._network, device)


def _detection(part: DetectionConfig, device: torch.device) -> DetectionReward:
    kinds: dict[str, Any] = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
    written = DETECTORS.get(part.path)
    config: Any = written() if written else read_config(part.path, kinds, revision=part.revision)
    kind: Any = Owlv2ForObjectDetection if isinstance(config, Owlv2Config) else OwlViTForObjectDetection
    detector = kind(config)
    core = detector.owlv2 if isinstance(config, Owlv2Config) else detector.owlvit
    core.text_model, core.text_projection = torch.nn.Identity(), torch.nn.Identity()
    dtype = network_dtype(part.precision, _kind(device))
    freeze(detector, torch.float32, device)
    for network in (core.vision_model, detector.layer_norm):
        network.to(dtype=dtype)
    if part.checkpointing:
        checkpoint_layers(core.vision_model.encoder.layers)
    return DetectionReward(detector, [0.0] * config.projection_dim, part, dtype)


def _kind(device: torch.device) -> torch.device:
    """A plan's GPU is a CPU to torch, and `auto` is to choose as on a real one."""
    return torch.device("cuda") if device.type == "cpu" and device.index is not None else device
