"""GenEval's checks of objects, counts and positions (Ghosh et al. 2023), through the detection reward.

The rules are GenEval's (its evaluate_images.py); the detector is OWL-ViT or OWLv2 in the place of Mask2Former,
with a threshold of its own, and colours are not looked at: figures of one detector compare with each other alone.

Shapes: B images, C channels, H W pixels, P patches, N candidates, 4 of centre x, centre y, width, height in 0..1.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memdiff.evaluation.prompt_sets import Prompt, Scene, WantedObject
from memdiff.rewards.detection import CANDIDATES, DetectionReward, load_objects, separate
from memdiff.runtime.placement import HOST, place
from memdiff.runtime.state_dicts import told_in_one_line
from memdiff.scoring.images import read_image

Box = tuple[float, float, float, float]  # centre x, centre y, width, height; y grows downwards
MOST_OBJECTS = 16  # of one class in an image, GenEval's own
CLEARANCE = 0.1  # of both objects' sizes: within it, neither lies to a side of the other


class ObjectChecks:
    """One detector that knows every class that a prompt set names."""

    def __init__(self, detections: Mapping[str, DetectionReward], device: torch.device) -> None:
        """`detections`: a reward for each class, all on one network."""
        self.detections, self.device = detections, device

    @classmethod
    def load(cls, path: str, prompts: Sequence[Prompt], device: torch.device) -> "ObjectChecks":
        """From a folder or the hub. Raises ConfigError in one line."""
        names = classes_of(prompts)
        with told_in_one_line(f"detector {path}"):
            rewards = load_objects(path, [f"a photo of a {name}" for name in names], device)
        return cls(dict(zip(names, rewards, strict=True)), device)

    @torch.no_grad()
    def objects(self, image_1CHW: Tensor, names: Iterable[str]) -> dict[str, list[Box]]:
        """The separate boxes of each class above the detector's threshold, the surest first."""
        features_1hwD = next(iter(self.detections.values())).backbone(image_1CHW)
        return {name: self._boxes(features_1hwD, self.detections[name]) for name in names}

    def _boxes(self, features_1hwD: Tensor, reward: DetectionReward) -> list[Box]:
        logits_1P, boxes_1P4 = reward.boxes(features_1hwD)
        logits_1N, indices_1N = logits_1P.topk(min(CANDIDATES, logits_1P.shape[1]), dim=1)
        boxes_1N4 = boxes_1P4.gather(1, indices_1N[..., None].expand(-1, -1, 4))
        kept_N = (separate(boxes_1N4)[0] > 0) & (logits_1N[0].sigmoid() >= reward.part.threshold)
        rows: list[list[float]] = place(boxes_1N4[0][kept_N].float(), HOST).tolist()
        return [(x, y, width, height) for x, y, width, height in rows[:MOST_OBJECTS]]

    def check(
        self, files: Sequence[Path], prompts: Sequence[Prompt], advance: Callable[[int], None] = lambda count: None
    ) -> list[float]:
        """1 for each image that shows what its prompt's scene wants, 0 for the others."""
        results = []
        for file, prompt in zip(files, prompts, strict=True):
            assert prompt.scene is not None
            image_1CHW = place(read_image(file)[None], self.device)
            names = {wanted.class_ for wanted in (*prompt.scene.include, *prompt.scene.exclude)}
            results.append(float(shows(prompt.scene, self.objects(image_1CHW, names))))
            advance(1)
        return results


def classes_of(prompts: Sequence[Prompt]) -> list[str]:
    """Every class that the scenes name, once."""
    scenes = [prompt.scene for prompt in prompts if prompt.scene is not None]
    return list(dict.fromkeys(w.class_ for scene in scenes for w in (*scene.include, *scene.exclude)))


def shows(scene: Scene, objects: Mapping[str, Sequence[Box]]) -> bool:
    """Whether the boxes of each class fulfil all of `include` and none of `exclude`."""
    groups: list[Sequence[Box] | None] = []
    for wanted in scene.include:
        boxes = objects.get(wanted.class_, ())[: wanted.count]
        groups.append(boxes if _is_there(wanted, boxes, groups) else None)
    too_many = any(len(objects.get(wanted.class_, ())) >= wanted.count for wanted in scene.exclude)
    return all(group is not None for group in groups) and not too_many


def _is_there(wanted: WantedObject, boxes: Sequence[Box], groups: Sequence[Sequence[Box] | None]) -> bool:
    if len(boxes) < wanted.count:
        return False
    if wanted.position is None:
        return True
    relation, target = wanted.position
    others = groups[target]
    return others is not None and all(relation in relations(box, other) for box in boxes for other in others)


def relations(box: Box, other: Box) -> set[str]:
    """How a box lies to another: `left of`, `right of`, `above`, `below`; none where it is too near."""
    offset = (box[0] - other[0], box[1] - other[1])
    length = math.hypot(*offset)
    moved = [
        math.copysign(max(abs(offset[axis]) - CLEARANCE * (box[2 + axis] + other[2 + axis]), 0.0), offset[axis])
        for axis in (0, 1)
    ]
    if all(abs(distance) < 1e-3 for distance in moved):
        return set()
    across, down = (distance / length for distance in moved)
    words = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {word for word, holds in words.items() if holds}
