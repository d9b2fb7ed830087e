"""Parts that read one network load it once and run it once; their scores are those of each part by itself, to the bit.

Shapes: P parts, B images, C channels, H W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from memdiff.rewards.build import build_reward, build_weighted
from memdiff.rewards.config import AnyPart, ClassifierConfig, DigitsConfig
from memdiff.rewards.families_config import AestheticConfig, ClipSimilarityConfig, DetectionConfig
from memdiff.rewards.weighted_sum import WeightedReward
from tests.helpers.reward_models import aesthetic_weights, tiny_clip_config, write_classifier, write_clip
from tests.rewards.test_detection_reward import write as write_detector

CPU = torch.device("cpu")


def digits(_: Path) -> list[AnyPart]:
    return [DigitsConfig(kind="digits", name=str(n), digits=(n,), mode="log_probability") for n in range(3)]


def labels(folder: Path) -> list[AnyPart]:
    write_classifier(folder, "vit")
    names = ("female", "male")
    return [
        ClassifierConfig(kind="classifier", path=str(folder), name=label, label=label, mode="log_probability")
        for label in names
    ]


def clip(folder: Path) -> list[AnyPart]:
    write_clip(folder, tiny_clip_config())
    torch.save(aesthetic_weights(24), folder / "head.pth")
    return [
        AestheticConfig(kind="aesthetic", path=str(folder), head=str(folder / "head.pth")),
        ClipSimilarityConfig(kind="clip_similarity", path=str(folder), prompt="a cat"),
    ]


def objects(folder: Path) -> list[AnyPart]:
    write_detector("owlv2", folder)
    path = str(folder)
    return [
        DetectionConfig(kind="detection", path=path, name="cat", object="a cat", mode="add"),
        DetectionConfig(kind="detection", path=path, name="dog", object="a dog", mode="remove"),
    ]


FAMILIES: dict[str, Callable[[Path], list[AnyPart]]] = {
    "digits": digits, "classifier": labels, "clip": clip, "detection": objects,
}  # fmt: skip


@contextmanager
def forwards(network: torch.nn.Module) -> Iterator[list[int]]:
    """The images of each forward of a network, or of the module in it that all of its forwards go through."""
    inner: Any = next((m for m in network.modules() if type(m).__name__.endswith("VisionTransformer")), network)
    rows: list[int] = []
    handle = inner.register_forward_hook(lambda module, inputs, outputs: rows.append(1))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_loaded_and_run_once(family: str, tmp_path: Path) -> None:
    """One network for all parts, one forward a chunk, and the scores of parts that have a network each."""
    parts = FAMILIES[family](tmp_path / "net")
    parts = [part.model_copy(update={"chunk": 4}) for part in parts]
    together = build_weighted(parts, device=CPU)
    images_BCHW = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shared = [network for network in together.networks if sum(network in p.reward.networks for p in together.parts) > 1]
    assert len(shared) == 1 and len(together.networks) == 1 + (family == "clip")  # the aesthetic head is one of its own
    with torch.no_grad(), forwards(shared[0]) as rows:
        raw_PB = together.raw(images_BCHW, [""] * 6)
    assert len(rows) == 2  # 4 images, then 2
    with torch.no_grad():
        alone = [build_weighted([part], device=CPU).raw(images_BCHW, [""] * 6)[0] for part in parts]
    assert torch.equal(raw_PB, torch.stack(alone))
    assert len({tuple(row.tolist()) for row in raw_PB}) == len(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_their_gradient_is_the_sum_of_each_part_by_itself(family: str, tmp_path: Path) -> None:
    """To 1e-5 of its largest element: the upstream of the shared network is added up before it, not behind it."""
    parts = FAMILIES[family](tmp_path / "net")
    images_BCHW = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(reward: WeightedReward) -> torch.Tensor:
        return torch.autograd.grad(reward.raw(images_BCHW, [""] * 3).sum(), images_BCHW)[0]

    together = gradient(build_weighted(parts, device=CPU))
    alone = sum(gradient(build_weighted([part], device=CPU)) for part in parts)
    assert isinstance(alone, torch.Tensor)
    assert float((together - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


def test_what_differs_is_not_shared(tmp_path: Path) -> None:
    """Another precision is another network; another number of images at a time another forward of the same one."""
    female, male = labels(tmp_path / "net")
    halved = male.model_copy(update={"precision": "fp16"})
    assert len(build_weighted([female, halved], device=CPU).networks) == 2
    in_ones = male.model_copy(update={"chunk": 1})
    reward = build_weighted([female, in_ones], device=CPU)
    images_BCHW = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), forwards(reward.networks[0]) as rows:
        raw_PB = reward.raw(images_BCHW, [""] * 2)
    assert len(reward.networks) == 1 and len(rows) == 3  # both at once, then one by one
    with torch.no_grad():
        one_by_one = torch.cat([build_reward(male, device=CPU)(image[None], [""]) for image in images_BCHW])
    assert torch.equal(raw_PB[1], one_by_one)


def test_moving_takes_a_shared_network_along_once() -> None:
    """All parts' networks are on the device that the reward is moved to, and there is still one of them."""
    reward = build_weighted(digits(Path()), device=CPU)
    reward.move(torch.device("meta"))
    assert {parameter.device.type for network in reward.networks for parameter in network.parameters()} == {"meta"}
    assert len({id(part.reward.networks[0]) for part in reward.parts}) == 1
