"""Objects named in words, found by OWL-ViT or OWLv2: add, remove, count. Differentiable in the logits.

With l_i the logit of patch i's box for the words, p_i = sigmoid(l_i):
    add      max_i log p_i          = log sigmoid(max l)
    remove   min_i log (1 - p_i)    = log sigmoid(-max l)
    count    -| wanted - sum_i kept_i sigmoid((l_i - logit(threshold)) / TEMPERATURE) |
`kept` are the boxes that non-maximum suppression leaves of the CANDIDATES likeliest; it is chosen without a gradient.
Logarithms and not probabilities: their gradient does not vanish where the object is far from there, or far from gone.

Shapes: B images, C channels (1 or 3), H W pixels, S the network's side, P patches, N candidates, D of the embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch.nn.functional import logsigmoid, normalize, pad
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
)

from memdiff.errors import ConfigError
from memdiff.rewards.backbones import Backbones
from memdiff.rewards.families_config import DetectionConfig
from memdiff.rewards.preprocess import CLIP_MEAN, CLIP_STD, resize, standardise, to_rgb
from memdiff.rewards.pretrained import (
    checkpoint_layers,
    fill_positions,
    find_model,
    freeze,
    load_tokenizer,
    network_dtype,
    read_config,
    run_network,
    without_buffers,
)
from memdiff.rewards.weights import load_weights
from memdiff.runtime.placement import upload
from memdiff.runtime.state_dicts import assign_strictly

Detector = OwlViTForObjectDetection | Owlv2ForObjectDetection

KINDS: Mapping[str, Any] = {"owlvit": OwlViTConfig, "owlv2": Owlv2Config}
ARCHITECTURES: Mapping[str, Callable[[], Any]] = {  # of skeletons, which read no file for these
    "google/owlvit-base-patch32": OwlViTConfig,
    "google/owlv2-base-patch16-ensemble": lambda: Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}),
}

CANDIDATES = 32
SAME_OBJECT = 0.5  # intersection over union from which two boxes show one object
TEMPERATURE = 0.5  # a box two nats below the threshold counts as 0.02


class PatchFeatures:
    """images_BCHW in [0, 1] -> the image network's features on its grid of patches, B h w D. Objects share it."""

    def __init__(self, detector: Detector, dtype: torch.dtype) -> None:
        """`detector` has its image network in `dtype`, its heads in fp32, and no text network."""
        self.detector, self.dtype = detector, dtype
        self._pads = isinstance(detector, Owlv2ForObjectDetection)
        vision_config: Any = detector.config.vision_config
        self._side: int = vision_config.image_size

    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Features of a batch."""
        return run_network(lambda x: self.detector.image_embedder(x)[0], self.pixels(images_BCHW), self.dtype)

    def pixels(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """OWL-ViT: stretched, bicubic. OWLv2: black added at the bottom or the right to make a square, bilinear."""
        images_BCHW = to_rgb(images_BCHW)
        height, width = images_BCHW.shape[-2:]
        if self._pads:
            longest = max(height, width)
            images_BCHW = pad(images_BCHW, (0, longest - width, 0, longest - height))
        images_BCHW = resize(images_BCHW, (self._side, self._side), "bilinear" if self._pads else "bicubic")
        return standardise(images_BCHW, CLIP_MEAN, CLIP_STD)


class DetectionReward:
    """Fulfils memdiff.rewards.reward.Reward. Prompts are not looked at: the object stands in the recipe."""

    differentiable = True

    def __init__(self, backbone: PatchFeatures, query_D: Sequence[float], part: DetectionConfig) -> None:
        """`query_D` is the embedding of the words."""
        # Python numbers, not a tensor: a plan calls this under fake tensors.
        self.backbone, self.query_D, self.part = backbone, query_D, part

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """The detector, without its text network."""
        return (self.backbone.detector,)

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Reward for the object being added, removed or counted, B fp32; prompts play no part."""
        return self.head(self.backbone(images_BCHW), prompts)

    def head(self, outputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The same from the features of the patches, B h w D."""
        del prompts
        return self._scores(outputs).float()

    def scores(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """As a call, B in the precision of the heads."""
        return self._scores(self.backbone(images_BCHW))

    def _scores(self, features_BhwD: torch.Tensor) -> torch.Tensor:
        logits_BP, boxes_BP4 = self.boxes(features_BhwD)
        if self.part.mode == "add":
            return logsigmoid(logits_BP.amax(dim=1))
        if self.part.mode == "remove":
            return logsigmoid(-logits_BP.amax(dim=1))
        assert self.part.count is not None
        return -(soft_count(logits_BP, boxes_BP4, self.part.threshold) - self.part.count).abs()

    def detect(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits_BP, boxes_BP4 as centre x, centre y, width, height in 0..1), in the heads' precision."""
        return self.boxes(self.backbone(images_BCHW))

    def boxes(self, features_BhwD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`detect` from the features of the patches."""
        detector, features_BPD = self.backbone.detector, features_BhwD.flatten(1, 2)
        query_11D = upload(torch.tensor([[self.query_D]], dtype=torch.float32), features_BPD.device)
        query_B1D = query_11D.to(features_BPD.dtype).expand(len(features_BPD), 1, -1)
        logits_BP1 = detector.class_predictor(features_BPD, query_B1D)[0]
        return logits_BP1.squeeze(-1), detector.box_predictor(features_BPD, features_BhwD)


def soft_count(logits_BP: torch.Tensor, boxes_BP4: torch.Tensor, threshold: float) -> torch.Tensor:
    """The number of separate boxes above the threshold, each counted by how far above it is: B."""
    count = min(CANDIDATES, logits_BP.shape[1])
    logits_BN, indices_BN = logits_BP.topk(count, dim=1)
    boxes_BN4 = boxes_BP4.gather(1, indices_BN[..., None].expand(-1, -1, 4)).detach()
    level = torch.logit(logits_BN.new_tensor(threshold))
    return (separate(boxes_BN4) * torch.sigmoid((logits_BN - level) / TEMPERATURE)).sum(dim=1)


def separate(boxes_BN4: torch.Tensor) -> torch.Tensor:
    """Non-maximum suppression of boxes in falling order of score: 1 for those kept, 0 for repeats of one kept. B N.

    No branch depends on the data, so that it runs on fake tensors too.
    """
    overlap_BNN = intersection_over_union(boxes_BN4)
    repeats_BNN = (overlap_BNN > SAME_OBJECT).to(boxes_BN4.dtype)
    kept_BN = torch.ones_like(boxes_BN4[..., 0])
    for n in range(1, boxes_BN4.shape[1]):
        repeated_B = (repeats_BNN[:, n, :n] * kept_BN[:, :n]).amax(dim=1)
        kept_BN = torch.cat([kept_BN[:, :n], (1 - repeated_B)[:, None], kept_BN[:, n + 1 :]], dim=1)
    return kept_BN


def intersection_over_union(boxes_BN4: torch.Tensor) -> torch.Tensor:
    """Of every pair of boxes (centre x, centre y, width, height): B N N."""
    low_BN2 = boxes_BN4[..., :2] - boxes_BN4[..., 2:] / 2
    high_BN2 = boxes_BN4[..., :2] + boxes_BN4[..., 2:] / 2
    sides_BNN2 = torch.minimum(high_BN2[:, :, None], high_BN2[:, None]) - torch.maximum(
        low_BN2[:, :, None], low_BN2[:, None]
    )
    shared_BNN = sides_BNN2.clamp(min=0).prod(dim=-1)
    area_BN = boxes_BN4[..., 2] * boxes_BN4[..., 3]
    union_BNN = area_BN[:, :, None] + area_BN[:, None] - shared_BNN
    return shared_BNN / union_BNN.clamp(min=torch.finfo(union_BNN.dtype).tiny)


def load_detection(part: DetectionConfig, device: torch.device, backbones: Backbones | None = None) -> DetectionReward:
    """From a folder or the hub, frozen, on `device`. Raises ConfigError in one line."""
    backbone, words = (backbones or Backbones()).once(_key(part), lambda: _load_networks(part, device))
    return DetectionReward(backbone, words.embedding(part.object), part)


def load_objects(path: str, objects: Sequence[str], device: torch.device) -> list[DetectionReward]:
    """A reward for each object in words, all on one network, which is loaded once. Raises ConfigError in one line."""
    try:
        parts = [DetectionConfig(kind="detection", path=path, object=words) for words in objects]
    except ValidationError as error:
        raise ConfigError(f"detector {path}: {error.errors()[0]['msg']}") from None
    backbones = Backbones()
    return [load_detection(part, device, backbones) for part in parts]


def _key(part: DetectionConfig) -> tuple[Any, ...]:
    """All that a detector is made of."""
    return part.path, part.revision, part.precision, part.checkpointing


def _load_networks(part: DetectionConfig, device: torch.device) -> "tuple[PatchFeatures, _Words]":
    with torch.device("meta"):
        detector = _network(read_config(part.path, KINDS, revision=part.revision))
    tensors = load_weights(find_model(part.path, revision=part.revision))
    assign_strictly(detector, without_buffers(tensors), part.path)
    fill_positions(detector)
    bias_P4 = detector.compute_box_bias(detector.num_patches_height, detector.num_patches_width)
    detector.register_buffer("box_bias", bias_P4, persistent=False)
    words = _Words(_core(detector), load_tokenizer(part.path, revision=part.revision))
    return _frozen(part, detector, device), words


def skeleton_detection(
    part: DetectionConfig, device: torch.device, backbones: Backbones | None = None
) -> DetectionReward:
    """The same network without its weights; the words' embedding is zeros."""

    def make() -> PatchFeatures:
        written = ARCHITECTURES.get(part.path)
        config = written() if written else read_config(part.path, KINDS, revision=part.revision)
        return _frozen(part, _network(config), device)

    backbone = (backbones or Backbones()).once(_key(part), make)
    config: Any = backbone.detector.config
    return DetectionReward(backbone, [0.0] * config.projection_dim, part)


class _Words:
    """The text network, on the host in fp32, for as long as objects are named."""

    def __init__(self, core: Any, tokenizer: CLIPTokenizer) -> None:
        self._network, self._projection, self._tokenizer = core.text_model, core.text_projection, tokenizer
        self._length: int = core.config.text_config.max_position_embeddings

    def embedding(self, words: str) -> list[float]:
        """L2-normalised: D. Raises ConfigError for too many words."""
        ids = self._tokenizer(words)["input_ids"]
        if len(ids) > self._length:
            raise ConfigError(
                f"reward object takes at most {self._length - 2} word pieces, got {len(ids) - 2}: {words:.60}"
            )
        network, projection = self._network.float(), self._projection.float()
        with torch.no_grad():
            return normalize(projection(network(input_ids=torch.tensor([ids])).pooler_output)[0], dim=-1).tolist()


def _network(config: Any) -> Any:
    kind: Any = Owlv2ForObjectDetection if isinstance(config, Owlv2Config) else OwlViTForObjectDetection
    return kind(config)


def _core(detector: Detector) -> Any:
    return detector.owlv2 if isinstance(detector, Owlv2ForObjectDetection) else detector.owlvit


def _frozen(part: DetectionConfig, detector: Detector, device: torch.device) -> PatchFeatures:
    """Without its text network, on `device`."""
    core = _core(detector)
    # The objects never change: their embeddings are all that the text network is for.
    core.text_model, core.text_projection = torch.nn.Identity(), torch.nn.Identity()
    dtype = network_dtype(part.precision, device)
    freeze(detector, torch.float32, device)
    for network in (core.vision_model, detector.layer_norm):
        network.to(dtype=dtype)
    if part.checkpointing:
        checkpoint_layers(core.vision_model.encoder.layers)
    return PatchFeatures(detector, dtype)
