"""Every kind of reward from a line of a recipe to its scores: built, placed, refused in one line, resumed.

The families' mathematics is held in their own test files. Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from memdiff.chain.noise import Noise, Stream
from memdiff.errors import ConfigError
from memdiff.methods.config import ReinforceConfig
from memdiff.methods.experience import Batch, Clock, Round
from memdiff.methods.reinforce import Reinforce
from memdiff.recipe.reading import read_recipe
from memdiff.reporting.rows import read_rows
from memdiff.rewards import image_reward
from memdiff.rewards.build import build_reward, build_weighted
from memdiff.rewards.clip_heads import PromptHead
from memdiff.rewards.config import part_name
from memdiff.rewards.reward import Reward
from memdiff.rewards.score import score
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.gradients import Gradients
from memdiff.runtime.placement import HOST
from memdiff.runtime.ranks import Ranks
from memdiff.runtime.vjp import Pieces
from tests.helpers.image_reward_small import RECORD, small_checkpoint, small_net
from tests.helpers.processes import memdiff, run_python
from tests.helpers.reward_models import (
    aesthetic_weights,
    tiny_clip_config,
    tiny_open_clip,
    write_classifier,
    write_clip,
    write_hps,
)
from tests.helpers.tiny import tiny_policy
from tests.rewards.test_detection_reward import write as write_detector
from tests.workers.engine_parity import knobs

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(count: int = 3, height: int = 40, width: int = 48, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def write_image_reward(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """The authors' file with two layers and small widths; the architecture is told to be that small."""
    folder.mkdir()
    torch.save(small_checkpoint(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(RECORD["vocabulary"]) + "\n", encoding="utf-8")
    net = small_net()
    patch.setattr(image_reward, "vision_config", lambda: net.vision.config)
    patch.setattr(image_reward, "text_config", lambda: net.text.config)


def write_aesthetic(folder: Path, patch: pytest.MonkeyPatch) -> None:
    write_clip(folder, tiny_clip_config())
    torch.save(aesthetic_weights(24), folder.parent / "head.pth")


# kind -> (what writes the model into a folder, the part's other keys, its name, whether it has a gradient)
KINDS: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], dict[str, Any], str, bool]] = {
    "classifier": (lambda folder, _: write_classifier(folder), {"label": "male", "mode": "probability"}, "male", True),
    "digits": (lambda *_: None, {"classifier": "judge"}, "digits_judge", False),
    "python": (lambda *_: None, {"file": "mine.py", "function": "light"}, "light", False),
    "image_reward": (write_image_reward, {"prompt": "a cat"}, "image_reward", True),
    "aesthetic": (write_aesthetic, {"head": "head.pth"}, "aesthetic", True),
    "pickscore": (lambda folder, _: write_clip(folder, tiny_clip_config()), {"prompt": "a cat"}, "pickscore", True),
    "hpsv2": (lambda folder, _: write_hps(folder, tiny_open_clip()), {"prompt": "a cat"}, "hpsv2", True),
    "clip_similarity": (
        lambda folder, _: write_clip(folder, tiny_clip_config()), {"prompt": "a cat"}, "clip_similarity", True,
    ),
    "detection": (lambda folder, _: write_detector("owlv2", folder), {"object": "a cat"}, "add_a_cat", True),
    "jpeg": (lambda *_: None, {"prefer": "large"}, "incompressible", False),
}  # fmt: skip
WITHOUT_MODEL = ("digits", "python", "jpeg")


def recipe_with(folder: Path, *parts: dict[str, Any], **sections: Any) -> Path:
    content = {"model": {"kind": "embedded"}, "method": {"kind": "reinforce"}, "reward": list(parts)} | sections
    (folder / "mine.py").write_text("def light(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def made(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Any, Reward]:
    """The checked part of a recipe that names a folder beside it, and the reward built from it."""
    write, settings, _, _ = KINDS[kind]
    write(folder / "net", patch)
    path = {} if kind in WITHOUT_MODEL else {"path": "net"}
    part = read_recipe(recipe_with(folder, {"kind": kind, **path, **settings})).reward[0]
    return part, build_reward(part, device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_from_recipe_to_scores(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, named, loaded from beside the recipe, scored: B finite fp32 numbers that tell images apart (yes or no
    apart), the same in chunks, and a gradient exactly where the reward says so."""
    part, reward = made(kind, tmp_path, monkeypatch)
    assert part_name(part) == KINDS[kind][2] and reward.differentiable is KINDS[kind][3]
    batch_BCHW = images().requires_grad_(reward.differentiable)
    scores_B = score(reward, batch_BCHW, [""] * 3, chunk=3, name=kind)
    assert scores_B.shape == (3,) and scores_B.dtype == torch.float32 and bool(scores_B.isfinite().all())
    assert len(set(scores_B.tolist())) == 3 or kind == "digits"
    one_by_one = score(reward, batch_BCHW, [""] * 3, chunk=1, name=kind)
    assert one_by_one.tolist() == pytest.approx(scores_B.tolist(), rel=1e-4, abs=1e-6)
    if reward.differentiable:
        (gradient,) = torch.autograd.grad(scores_B.sum(), batch_BCHW)
        assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


def tensors_of(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every parameter and buffer that an object of ours holds, itself or through others of ours."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from tensors_of(entry, seen)
    elif type(value).__module__.startswith("memdiff"):
        for entry in vars(value).values():
            yield from tensors_of(entry, seen)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_takes_every_tensor_along(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `move` no weight or buffer of a reward stays behind, but for the CLIP family's text network, which lives on
    the host: what `networks` leaves out would be missing on the GPU, or would never leave it."""
    part, _ = made(kind, tmp_path, monkeypatch)
    weighted = build_weighted([part], device=CPU)
    reward: Any = weighted.parts[0].reward
    stays: set[int] = set()
    if kind in ("pickscore", "hpsv2", "clip_similarity"):
        assert isinstance(reward._head, PromptHead)
        stays = {id(tensor) for tensor in reward._head.text.state_dict(keep_vars=True).values()}
        stays |= {id(buffer) for buffer in reward._head.text.buffers()}
    weighted.move(torch.device("meta"))
    left = [t.shape for t in tensors_of(reward, set()) if not t.is_meta and id(t) not in stays]
    assert left == [] and (reward.networks or kind in ("python", "jpeg"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hpsv2"])  # its one file is taken to be CLIP-H
def test_a_skeleton_is_the_network_without_its_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same class, names, shapes, precision; frozen, in evaluation mode; a gradient where the loaded one has one."""
    part, _ = made(kind, tmp_path, monkeypatch)
    loaded, skeleton = (build_weighted([part], device=CPU, skeleton=skeleton).parts[0] for skeleton in (False, True))
    for network, bare in zip(loaded.reward.networks, skeleton.reward.networks, strict=True):
        wanted, bare_tensors = ({n: (t.shape, t.dtype) for n, t in net.state_dict().items()} for net in (network, bare))
        assert bare_tensors == wanted and type(bare) is type(network) and not bare.training
        assert not any(parameter.requires_grad for parameter in bare.parameters())
    assert type(skeleton.reward) is type(loaded.reward) and (skeleton.features is None) is (loaded.features is None)
    batch_BCHW = images().requires_grad_(skeleton.reward.differentiable)
    scores_B = score(skeleton.reward, batch_BCHW, [""] * 3, chunk=3, name=kind)
    assert scores_B.requires_grad is skeleton.reward.differentiable is loaded.reward.differentiable


class Moving(torch.nn.Module):
    """Notes in a diary where it is taken, and as a reward when it scores."""

    differentiable = False

    def __init__(self, diary: list[str]) -> None:
        super().__init__()
        self.diary = diary

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        return (self,)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.diary.append(str(args[0]))
        return super().to(*args, **kwargs)

    def forward(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.diary.append("scores")
        return images_BCHW.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(("idle_off", "expected"), [(True, ["cpu:0", "scores", "cpu"]), (False, ["cpu:0", "scores"])])
def test_idle_rewards_are_on_the_host_while_training(idle_off: bool, expected: list[str]) -> None:
    """idle_off: brought to the device for scoring, and gone before the gradient is made; else they stay."""
    diary: list[str] = []
    policy = tiny_policy(steps=3)
    weighted = WeightedReward([WeightedPart("moving", Moving(diary))], device=torch.device("cpu:0"))
    algorithm = Reinforce(
        ReinforceConfig(kind="reinforce"), weighted, Pieces(Gradients(list(policy.trainable().values()))),
        Ranks(0, 1, CPU), knobs(4, rewards="idle_off" if idle_off else "gpu"),
    )  # fmt: skip
    noise = Noise(seed=0, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    experience = algorithm.collect(policy, Round(Batch(range(2), [""] * 2, 2, noise), Clock(CPU)))
    assert diary == expected and str(HOST) == "cpu"
    algorithm.differentiate(policy, experience)
    assert diary == expected


def test_parts_are_loaded_lazily() -> None:
    """Building a JPEG reward imports neither transformers nor kornia: each kind pays for itself alone."""
    code = (
        "import sys, torch\n"
        "from memdiff.rewards.build import build_reward\n"
        "from memdiff.rewards.families_config import JpegConfig\n"
        "build_reward(JpegConfig(kind='jpeg'), device=torch.device('cpu'))\n"
        "assert not {'transformers', 'kornia', 'diffusers'} & set(sys.modules)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


REFUSED = [
    ({"kind": "aesthetik"}, "reward.0.kind must be one of 'classifier'"),
    ({"kind": "aesthetic", "haed": "x"}, "unknown key reward.0.haed; did you mean head?"),
    ({"kind": "jpeg", "qualty": 3}, "unknown key reward.0.qualty; did you mean quality?"),
    ({"kind": "detection", "objct": "cat"}, "unknown key reward.0.objct; did you mean object?"),
    ({"kind": "detection"}, "reward.0.object is missing"),
    ({"kind": "detection", "object": "cat", "chunk": 0}, "reward.0.chunk:"),
    ({"kind": "jpeg", "normalise": "yes"}, "reward.0.normalise:"),
    ({"kind": "image_reward", "path": "./no.pt", "prompt": "a"}, "reward.0.path: no such folder: ./no.pt"),
    ({"kind": "aesthetic", "head": "/no/head.pth"}, "reward.0.head: no such folder: /no/head.pth"),
    ({"kind": "hpsv2", "format": "transformers", "path": "mine.pt", "prompt": "a"}, "needs a folder or a hub id"),
    ({"kind": "image_reward"}, "reward image_reward needs a `prompt`; model.kind embedded has none"),
    ({"kind": "pickscore", "name": "likes"}, "reward likes needs a `prompt`"),
    (
        {"kind": "digits", "mode": "share", "target_share": 0.5, "normalise": "running"},
        "normalise: running would undo mode: share",
    ),
]


@pytest.mark.parametrize(("part", "said"), REFUSED, ids=range(len(REFUSED)))
def test_mistakes_are_one_line(part: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe_with(tmp_path, part))
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_weight_files_beside_the_recipe_are_found(tmp_path: Path) -> None:
    """Where a file is a legal path it becomes absolute, as folders do; a hub id stays as it is."""
    (tmp_path / "sub").mkdir()
    for name in ("ImageReward.pt", "head.pth", "HPS_v2.1_compressed.pt"):
        (tmp_path / "sub" / name).write_bytes(b"")
    parts = [
        {"kind": "image_reward", "path": "sub/ImageReward.pt", "prompt": "a"},
        {"kind": "aesthetic", "head": "sub/head.pth"},
        {"kind": "hpsv2", "path": "sub/HPS_v2.1_compressed.pt", "prompt": "a"},
    ]
    reward_parts: Any = read_recipe(recipe_with(tmp_path, *parts)).reward
    assert reward_parts[0].path == str(tmp_path / "sub/ImageReward.pt") and reward_parts[1].head == str(
        tmp_path / "sub/head.pth"
    )
    assert reward_parts[2].path == str(tmp_path / "sub/HPS_v2.1_compressed.pt")
    assert reward_parts[1].path == "openai/clip-vit-large-patch14"


@pytest.mark.slow
def test_running_statistics_survive_a_stop_bit_for_bit(tmp_path: Path) -> None:
    """Two normalised parts in units a thousand apart, two ranks, 4 rounds: in one go, and in two runs of 2 and 4. The
    weights and every number but times are equal, and the raw scores are logged as they were."""
    part = {"kind": "python", "file": str(tmp_path / "mine.py"), "function": "light", "normalise": "running"}
    recipe = recipe_with(
        tmp_path, part, {"kind": "jpeg", "normalise": "running", "weight": 0.5}, sampler={"steps": 4},
        optimizer={"learning_rate": 1e-3}, evaluate={"every": 2, "images": 4},
        run={"rounds": 4, "images_per_round": 5, "save_every": 1},
    )  # fmt: skip
    stories = []
    for name, rounds in (("once", (4,)), ("twice", (2, 4))):
        for count in rounds:
            done = memdiff("train", recipe, "--gpus", 2, "--out", tmp_path / name, "--set", f"run.rounds={count}")
            assert done.returncode == 0, done.stderr
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        plain = [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]
        stories.append((plain, (tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()))
    assert stories[0] == stories[1]
    row = stories[0][0][-1]
    assert 0 < row["reward/light"] < 1 and row["reward/compressible"] < -0.1 and abs(row["reward_mean"]) < 3
