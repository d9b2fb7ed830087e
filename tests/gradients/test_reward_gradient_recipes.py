"""Recipes of the methods that differentiate the reward: what is refused, in which words, and that they train."""

import json
from pathlib import Path

import pytest
import yaml

from memdiff.errors import ConfigError
from memdiff.methods.config import AlignPropConfig, DraftConfig, ReflConfig
from memdiff.recipe.reading import check_recipe
from memdiff.reporting.rows import read_rows
from tests.helpers.processes import memdiff

ROOT = Path(__file__).resolve().parents[2]
LEAST = {
    "model": {"kind": "embedded"},
    "sampler": {"steps": 4, "eta": 0},
    "method": {"kind": "draft"},
    "reward": [{"kind": "digits", "mode": "probability"}],
}


def refusal(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_recipe(LEAST | sections, source="r.yaml")
    return str(caught.value)


SCORE = {"kind": "python", "file": str(ROOT / "tests/helpers/tiny.py")}
REFUSED = [
    ({"method": {"kind": "draft", "last_steps": 5}}, ("method.last_steps must be 1..4 (sampler.steps) or all, got 5",)),
    ({"method": {"kind": "draft", "last_steps": 0}}, ("method.last_steps",)),
    ({"method": {"kind": "draft", "last_steps": "most"}}, ("method.last_steps", "'all'")),
    ({"method": {"kind": "draft", "last_steps": 2, "noise_samples": 2}}, ("noise_samples", "last_steps to 1, got 2")),
    ({"method": {"kind": "draft", "noise_samples": 0}}, ("method.noise_samples", "got 0")),
    ({"method": {"kind": "draft", "costate_clip": 0}}, ("method.costate_clip", "got 0")),
    ({"method": {"kind": "alignprop", "last_steps": 9}}, ("method.last_steps must be 1..4", "got 9")),
    ({"method": {"kind": "alignprop", "truncation": "fixed", "one_draw_per_batch": True}}, ("one_draw_per_batch",)),
    ({"method": {"kind": "refl"}}, ("method.last_step must be 0..3", "sampler.steps 4, got 39")),
    ({"method": {"kind": "refl", "first_step": 3, "last_step": 2}}, ("first_step must be at most last_step",)),
    ({"method": {"kind": "draft", "advantage": "center"}}, ("unknown key method.advantage", "last_steps")),
    ({"method": {"kind": "darft"}}, ("method.kind must be one of", "'draft'", "got 'darft'")),
    ({"reward": [{"kind": "digits"}]}, ("reward digits has no gradient", "method.kind draft", "mode: probability",
                                        "method.kind: reinforce")),
    ({"reward": [{"kind": "digits", "mode": "share", "target_share": 0.5}]}, ("has no gradient", "reinforce")),
    ({"reward": [{"kind": "jpeg"}]}, ("reward compressible has no gradient", "measure: distance", "reinforce")),
    ({"reward": [SCORE]}, ("reward score has no gradient", "differentiable: true", "reinforce")),
    ({"adapter": {"steps": [0, 2]}}, ("adapter.steps [0, 2]", "3..3", "without anything to train")),
    ({"adapter": {"steps": [0, 3]}, "method": {"kind": "refl", "first_step": 2, "last_step": 3}},
     ("adapter.steps [0, 3]", "2..3")),
    ({"method": {"kind": "reinforce"}, "sampler": {"eta": 1}, "reward": [{"kind": "digits"}],
      "adapter": {"rank": 0}}, ("adapter.rank",)),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "said"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(sections: dict[str, object], said: tuple[str, ...]) -> None:
    message = refusal(**sections)
    assert all(words in message for words in said), message


def test_what_is_taken() -> None:
    """Any eta; kinds, K and windows that fit; a held-out reward need not be differentiable."""
    for eta in (0, 1):
        check_recipe(LEAST | {"sampler": {"steps": 4, "eta": eta}}, source="")
    kept = LEAST | {"evaluate": {"rewards": [{"kind": "digits", "classifier": "judge"}]}}
    assert isinstance(check_recipe(kept, source="").method, DraftConfig)
    window = LEAST | {"adapter": {"steps": [0, 2]}, "method": {"kind": "draft", "last_steps": "all"}}
    assert check_recipe(window, source="").adapter is not None
    assert isinstance(check_recipe(LEAST | {"method": {"kind": "alignprop"}}, source="").method, AlignPropConfig)
    refl = check_recipe(LEAST | {"method": {"kind": "refl", "first_step": 0, "last_step": 3}}, source="").method
    assert isinstance(refl, ReflConfig) and (refl.scale, refl.target) == (1e-3, 2.0)


METHODS = [
    {"kind": "draft", "last_steps": "all", "base_distance": 0.1},
    {"kind": "draft", "noise_samples": 2},
    {"kind": "alignprop", "target": 1.0, "scale": 0.01},
    {"kind": "refl", "first_step": 2, "last_step": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=["draft", "lv", "alignprop", "refl"])
def test_a_run(method: dict[str, object], tmp_path: Path) -> None:
    """The command line trains each on two ranks, normalised part and all, and resumes after the second round."""
    part = {"kind": "digits", "mode": "probability", "normalise": "running"}
    recipe = LEAST | {
        "method": method,
        "reward": [part, {"kind": "digits", "name": "legible", "pool": "max", "mode": "log_probability"}],
        "memory": {"kept_steps": 1, "rewards": "idle_off"},
        "evaluate": {"every": 2, "images": 4},
        "run": {"rounds": 2, "images_per_round": 3, "save_every": 1},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    for rounds in (2, 3):
        done = memdiff("train", file, "--gpus", 2, "--out", tmp_path / "run", "--set", f"run.rounds={rounds}")
        assert done.returncode == 0, done.stderr + done.stdout
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["round"] > 0]
    assert [row["round"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["grad_norm"] > 0 and any(row["costate_norm"]) and row["reward_queries"] % 3 == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "complete"
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
