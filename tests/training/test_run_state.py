"""What a checkpoint's state may say: plain numbers of the kinds that a run writes, or the checkpoint is passed over."""

import json
from typing import Any

import pytest

from memdiff.rewards.normalise import from_json
from memdiff.training.run_state import KINDS, RunState

STATE: dict[str, Any] = {
    "round": 2, "images": 8, "best_reward": -0.5, "best_round": 1, "statistics": {"digits": [4, 0.1, 0.2]},
    "objective": {"a cat": [0.1, 2]}, "evaluate_statistics": {}, "first": {"diversity": 0.3}, "alarm": None,
}  # fmt: skip
# (key, value as JSON)
WRONG = [
    ("round", "-1"), ("round", "true"), ("round", '"2"'), ("round", "1e400"), ("images", "null"),
    ("images", "1" + "0" * 400), ("best_reward", '"x"'), ("best_reward", "[]"), ("best_round", "0.5"),
    ("statistics", "[]"), ("statistics", '{"digits": [1]}'), ("statistics", '{"digits": [1, 2, null]}'),
    ("statistics", '{"digits": [NaN, 0, 0]}'), ("statistics", '{"digits": "abc"}'), ("objective", '{"a": 1}'),
    ("objective", '{"a": ["x"]}'), ("evaluate_statistics", '{"digits": [1, 2, 3, 4]}'), ("first", '{"a": []}'),
    ("first", "7"), ("alarm", "{}"), ("alarm", "5"),
]  # fmt: skip


def test_what_a_run_wrote_is_taken_up() -> None:
    written = json.loads(json.dumps(STATE | {"world_size": 1, "of another version": [1]}))
    state = RunState.of(written)
    assert vars(state) == STATE and set(KINDS) == set(vars(RunState()))
    assert from_json(state.statistics)["digits"].count == 4
    assert RunState.of({"round": 3}) == RunState(round=3)
    assert RunState.of(vars(RunState())) == RunState()


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_anything_else_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"no usable {key}: ") as caught:
        RunState.of(STATE | {key: json.loads(value)})
    assert len(str(caught.value)) < 120
