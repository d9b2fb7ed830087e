"""GenEval's rules on boxes laid by hand, and one detector for all classes of a prompt set."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.evaluation.geneval import Box, ObjectChecks, relations, shows
from memdiff.evaluation.prompt_sets import Prompt, Scene
from memdiff.rewards.detection import load_detection
from memdiff.rewards.families_config import DetectionConfig
from memdiff.scoring.images import read_image
from tests.rewards.test_detection_reward import write

CPU = torch.device("cpu")
LEFT: Box = (0.2, 0.5, 0.2, 0.2)
RIGHT: Box = (0.8, 0.5, 0.2, 0.2)
LOW: Box = (0.25, 0.9, 0.2, 0.1)


def scene(*include: dict[str, object], exclude: tuple[dict[str, object], ...] = ()) -> Scene:
    return Scene.model_validate({"tag": "t", "include": include, "exclude": exclude})


def test_relations() -> None:
    """A direction counts from a share of 0.5 of the way on, beyond a tenth of both sizes; y grows downwards."""
    assert relations(LEFT, RIGHT) == {"left of"} and relations(RIGHT, LEFT) == {"right of"}
    assert relations(LOW, LEFT) == {"below"} and relations(LEFT, LOW) == {"above"}
    assert relations((0.2, 0.2, 0.1, 0.1), (0.7, 0.7, 0.1, 0.1)) == {"left of", "above"}
    assert relations(LEFT, (0.23, 0.52, 0.2, 0.2)) == set() and relations(LEFT, LEFT) == set()


def test_objects_counts_and_positions() -> None:
    """All of `include`, as many as are wanted or more; none of `exclude`, which begins at its count."""
    two = scene({"class": "cat", "count": 2}, exclude=({"class": "cat", "count": 3},))
    assert shows(two, {"cat": [LEFT, RIGHT]})
    assert not shows(two, {"cat": [LEFT]}) and not shows(two, {}) and not shows(two, {"cat": [LEFT, RIGHT, LOW]})
    beside = scene({"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]})
    assert shows(beside, {"cat": [LEFT], "dog": [RIGHT]})
    assert not shows(beside, {"cat": [RIGHT], "dog": [LEFT]})
    assert shows(beside, {"cat": [LEFT, RIGHT], "dog": [RIGHT]})  # of each the surest alone is looked at
    assert not shows(beside, {"dog": [RIGHT]})


def test_one_detector_for_all_classes(tmp_path: Path) -> None:
    """Its boxes are those of the detection reward of that class; the threshold decides which count."""
    write("owlvit", tmp_path / "owl")
    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "a.png")
    prompts = [Prompt("x", "t", scene({"class": "cat", "count": 1}, exclude=({"class": "dog", "count": 1},)))]
    checks = ObjectChecks.load(str(tmp_path / "owl"), prompts, CPU)
    assert list(checks.detections) == ["cat", "dog"]
    image = read_image(tmp_path / "a.png")[None]
    for name in ("cat", "dog"):
        alone = load_detection(
            DetectionConfig(kind="detection", path=str(tmp_path / "owl"), object=f"a photo of a {name}"), CPU
        )
        logits_1P, boxes_1P4 = alone.detect(image)
        torch.testing.assert_close(checks.detections[name].detect(image), (logits_1P, boxes_1P4))
        surest = boxes_1P4[0, int(logits_1P[0].argmax())].tolist()
        boxes = checks.objects(image, [name])[name]
        assert bool(boxes) == (float(logits_1P.max().sigmoid()) >= 0.1)
        assert not boxes or boxes[0] == pytest.approx(surest)
    present = checks.objects(image, ["cat", "dog"])
    assert prompts[0].scene is not None
    assert checks.check([tmp_path / "a.png"], prompts) == [float(shows(prompts[0].scene, present))]
    with pytest.raises(ConfigError, match="no such folder"):
        ObjectChecks.load(str(tmp_path / "none"), prompts, CPU)
