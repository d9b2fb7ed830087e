"""Guards against over-optimisation: differences between images and alarms, by hand; in a run, on the real command line.

Shapes: N images, C channels, H W pixels, D of an embedding.
"""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cosine_similarity

from memdiff.reporting.html import write_report
from memdiff.reporting.rows import read_rows
from memdiff.rewards.guards import alarms, diversity, feature_diversity, pixel_diversity, watched
from memdiff.rewards.guards_config import GuardsConfig
from memdiff.rewards.weighted_sum import WeightedPart, WeightedReward
from memdiff.runtime.ranks import Ranks
from tests.helpers.processes import memdiff

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
GUARDS = GuardsConfig()


def test_pixel_diversity_by_hand() -> None:
    """Three images of two pixels, (0, 0), (1, 0), (1, 1): squared differences a pixel 1/2, 1, 1/2, mean 2/3."""
    images_N112 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).view(3, 1, 1, 2)
    assert float(pixel_diversity(images_N112, ALONE)) == pytest.approx(math.sqrt(2 / 3), rel=1e-6)
    assert float(pixel_diversity(torch.full((5, 3, 4, 4), 0.3), ALONE)) == pytest.approx(0, abs=1e-7)
    assert math.isnan(float(pixel_diversity(images_N112[:1], ALONE)))


def test_feature_diversity_by_hand() -> None:
    """(1, 0), (0, 2), (-3, 0): cosines 0, -1, 0, mean -1/3, so the distance is 4/3. Lengths do not matter."""
    features_ND = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert float(feature_diversity(features_ND, ALONE)) == pytest.approx(4 / 3, rel=1e-12)
    assert float(feature_diversity(torch.ones(9, 4), ALONE)) == pytest.approx(0, abs=1e-12)


def test_no_pairs_are_needed(generator: torch.Generator) -> None:
    """20 random images and embeddings: the sums over images equal the means over all 190 pairs."""
    images_NCHW = torch.rand(20, 3, 5, 5, generator=generator)
    features_ND = torch.randn(20, 7, generator=generator)
    pairs = list(combinations(range(20), 2))
    squares = torch.stack([(images_NCHW[i] - images_NCHW[j]).square().mean() for i, j in pairs])
    cosines = torch.stack([cosine_similarity(features_ND[i], features_ND[j], dim=0) for i, j in pairs])
    assert float(pixel_diversity(images_NCHW, ALONE)) == pytest.approx(float(squares.mean().sqrt()), rel=1e-5)
    assert float(feature_diversity(features_ND, ALONE)) == pytest.approx(float(1 - cosines.mean()), rel=1e-5)


class Embedding:
    """Scores the brightness; embeds an image as its pixels, and notes how many it embedded."""

    differentiable = True
    networks = ()

    def __init__(self) -> None:
        self.embedded: list[int] = []

    def __call__(self, images_BCHW, prompts):
        return images_BCHW.mean(dim=(1, 2, 3))

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.embedded.append(len(images_BCHW))
        return images_BCHW.flatten(1)


def test_at_most_64_images_are_embedded_by_the_first_part_that_can(generator: torch.Generator) -> None:
    """100 images in chunks of 10: 64 are embedded, by the second part; without such a part there is no such number."""
    images_NCHW, reward = torch.rand(100, 1, 3, 3, generator=generator), Embedding()
    parts = [WeightedPart("a", Embedding()), WeightedPart("b", reward, chunk=10, features=reward.features)]
    diversities = diversity(WeightedReward(parts, device=CPU), images_NCHW, ALONE, num_images=100)
    assert reward.embedded == [10] * 6 + [4]
    assert float(diversities["diversity_feature"]) == float(feature_diversity(images_NCHW[:64].flatten(1), ALONE))
    plain = diversity(WeightedReward(parts[:1], device=CPU), images_NCHW, ALONE, num_images=100)
    assert list(plain) == ["diversity_pixel"] and plain["diversity_pixel"] == diversities["diversity_pixel"]


FIRST = {
    "evaluate/reward_mean": 0.2, "evaluate/reward/judge": 22.0, "evaluate/reward_std/judge": 1.0,
    "diversity_pixel": 0.3, "evaluate/diversity_pixel": 0.3,
}  # fmt: skip


# (what a row holds, words of the alarm; none: no alarm). The bounds are 22 - 0.5 * 1 = 21.5 and 0.5 * 0.3 = 0.15.
CASES: list[tuple[dict[str, Any], str | None]] = [
    ({"evaluate/reward_mean": 0.5, "evaluate/reward/judge": 21.6}, None),
    ({"evaluate/reward_mean": 0.5, "evaluate/reward/judge": 21.4}, "held-out judge fell from 22 to 21.4"),
    ({"evaluate/reward_mean": 0.1, "evaluate/reward/judge": 21.4}, None),  # both fall: a bad run, but none is fooled
    ({"evaluate/reward_mean": 0.5, "evaluate/reward/other": 0.0}, None),  # not held out
    ({"diversity_pixel": 0.16}, None),
    ({"diversity_pixel": 0.14}, "diversity_pixel is 0.14, below 0.5 of its first value 0.3"),
    ({"evaluate/diversity_pixel": 0.1}, "evaluate/diversity_pixel is 0.1"),
    ({"diversity_feature": 0.0}, None),  # never seen before
    ({"diversity_pixel": None}, None),
    ({"reward_std": 0.0, "reward_std/a": 0.0}, "every image of the round has the same reward"),
    ({"reward_std": 0.0, "reward_std/a": 0.5}, None),  # a share part at its target
    ({"reward_std": 0.1, "reward_std/a": 0.0, "reward_std/b": 0.1}, None),
    ({}, None),
]


@pytest.mark.parametrize(("row", "words"), CASES, ids=range(len(CASES)))
def test_alarms(row: dict[str, Any], words: str | None) -> None:
    """Each on its own side of its bound; one line."""
    messages = alarms(row, FIRST, GUARDS, ["judge"])
    assert len(messages) == (words is not None)
    assert all(words in alarm and "\n" not in alarm for alarm in messages if words)


def test_guards_can_be_switched_off() -> None:
    """With both bounds null, a row that would raise two alarms raises none."""
    off = GuardsConfig(held_out_drop=None, diversity=None)
    row = {"evaluate/reward_mean": 0.5, "evaluate/reward/judge": 0.0, "diversity_pixel": 0.0}
    assert len(alarms(row, FIRST, GUARDS, ["judge"])) == 2 and alarms(row, FIRST, off, ["judge"]) == []


def test_the_first_values_are_remembered() -> None:
    """Numbers of a row that later rows are held against; texts, nulls and other numbers are left out."""
    row = FIRST | {"grad_norm": 1.0, "diversity_feature": None, "evaluate/reward/trained": 0.2}
    assert watched(row, ["judge"]) == FIRST


def test_alarms_are_in_the_report(tmp_path: Path) -> None:
    """Round and text of each; hostile ones as text; none: no section."""
    rows = [{"round": 1, "reward_mean": 0.1, "alarms": []}, {"round": 2, "reward_mean": 0.2, "alarms": []}]
    for raised_alarms in ([], ["images grow <script>alike</script>", 7]):
        rows[1]["alarms"] = raised_alarms
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = write_report(tmp_path).read_text()
        assert ('id="alarms"' in page) == bool(raised_alarms)
    assert "images grow &lt;script&gt;alike&lt;/script&gt;" in page and '<th scope="row">2</th>' in page


@pytest.mark.slow
def test_a_guard_ends_a_run_in_order_and_every_rank_agrees(tmp_path: Path) -> None:
    """A constant reward, two ranks, 3 rounds asked for: the run ends after the first, saved and complete, not failed;
    the same command again leaves it alone, and with guards.stop=false it goes on to the end with warnings."""
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return [1.0] * len(images)\n")
    content = {
        "model": {"kind": "embedded"},
        "sampler": {"steps": 4},
        "method": {"kind": "reinforce"},
        "reward": [{"kind": "python", "file": "mine.py"}],
        "evaluate": {"every": 0},
        "guards": {"stop": True},
        "run": {"rounds": 3, "images_per_round": 4, "save_every": 5},
    }
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content))
    done = memdiff("train", recipe, "--gpus", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "alarm at round 1: every image of the round has the same reward" in done.stdout
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["round"], status["exit_code"]) == ("complete", 1, 0)
    assert status["message"].startswith("ended by a guard: every image") and "guards.stop=false" in status["message"]
    assert (out / "model" / "model_index.json").is_file() and (out / "checkpoints" / "round_000001").is_dir()
    again = memdiff("train", recipe, "--gpus", 2, "--out", out)
    assert again.returncode == 0 and "for more, --set guards.stop=false" in again.stdout
    further = memdiff("train", recipe, "--gpus", 2, "--out", out, "--set", "guards.stop=false")
    assert further.returncode == 0, further.stderr
    rows = read_rows(out / "metrics.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3] and all(len(row["alarms"]) == 1 for row in rows)
    assert json.loads((out / "status.json").read_text())["message"] == ""
