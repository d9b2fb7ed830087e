"""Two records side by side: `==` on one machine and one set of libraries, close numbers elsewhere. No torch.

Elsewhere means another torch (or another library that computes), another set of instructions or another processor: then
checksums that differ are no finding, and the numbers beside them decide, a tensor's relative to its root mean square.
Several steps, a backward and an update amplify a rounding: on one processor SSE4.1 in the place of AVX2 moved no number
of six fp32 cases by more than 2.7e-5, so 1e-4 is allowed; of fp16 a hundred roundings of 2^-11.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CASES, ENVIRONMENT, PLANS = "cases.jsonl", "environment.json", "plans"
DECIDING = ("packages", "instructions", "processor")  # of an environment: where one differs, bits may
CLOSE = {False: 1e-4, True: 5e-2}  # by whether the network runs in fp16


@dataclass(frozen=True)
class Difference:
    """One value of one case."""

    case: str
    where: str
    stored: Any
    current: Any

    def __str__(self) -> str:
        """The case, the path to the value, and both values in one line."""
        return f"{self.case}: {self.where}: stored {_shown(self.stored)}, found {_shown(self.current)}"


def read_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Values by the case's name, plans among them as plan/RECIPE."""
    lines = (folder / CASES).read_text().splitlines()
    values_by_case = {row["case"]: row["values"] for row in map(json.loads, lines)}
    return values_by_case | {
        f"plan/{file.stem}": json.loads(file.read_text()) for file in (folder / PLANS).glob("*.json")
    }


def write_cases(folder: Path, values: Mapping[str, Any], *, order: Sequence[str]) -> None:
    """One line a case, so that a change shows by case; those that are there already stay, unless they are made anew."""
    every = {**(read_cases(folder) if (folder / CASES).is_file() else {}), **values}
    rows = [json.dumps({"case": name, "values": every[name]}) + "\n" for name in order if name in every]
    (folder / CASES).write_text("".join(rows))


def elsewhere(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What tells two environments apart, of all that may change bits."""
    return [
        f"{key}: {_shown(stored.get(key))} stored, {_shown(current.get(key))} here"
        for key in DECIDING
        if stored.get(key) != current.get(key)
    ]


def differences(
    stored: Mapping[str, Any],
    current: Mapping[str, Any],
    names: Sequence[str],
    *,
    exact: bool,
    half: Sequence[str] = (),
) -> list[Difference]:
    """Every value of the named cases that differs; `half` are those that run in fp16."""
    result: list[Difference] = []
    for name in names:
        if name not in stored:
            result.append(Difference(name, "the case", "nothing", "a value; write the record again to take it in"))
            continue
        close = 0.0 if exact else CLOSE[name in half]
        result += [Difference(name, *rest) for rest in _differing(stored[name], current[name], "", close)]
    return result


def _differing(stored: Any, current: Any, where: str, close: float) -> Iterator[tuple[str, Any, Any]]:
    """(path, stored, found) of each leaf; a tensor's summary is a leaf."""
    if _is_tensor(stored) and _is_tensor(current):
        if stored != current and not (close and _near(stored, current, close)):
            yield where, stored, current
    elif isinstance(stored, Mapping) and isinstance(current, Mapping):
        for key in [*stored, *(key for key in current if key not in stored)]:
            yield from _differing(
                stored.get(key, "nothing"), current.get(key, "nothing"), f"{where}.{key}" if where else str(key), close
            )
    elif isinstance(stored, list) and isinstance(current, list) and len(stored) == len(current):
        for number, (one, other) in enumerate(zip(stored, current, strict=True)):
            yield from _differing(one, other, f"{where}[{number}]", close)
    elif stored != current and not (close and _near_numbers(stored, current, close)):
        yield where, stored, current


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Mapping) and "sha256" in value


def _near(stored: Mapping[str, Any], current: Mapping[str, Any], close: float) -> bool:
    """Of equal size and, relative to their root mean square, close in norm and in the numbers shown."""
    if stored["elements"] != current["elements"] or stored.get("names") != current.get("names"):
        return False
    size = stored["norm"] / math.sqrt(max(1, stored["elements"]))
    pairs = [(stored["norm"] / size, current["norm"] / size)] if size else []
    pairs += [(one / size, other / size) for one, other in zip(stored["some"], current["some"], strict=True) if size]
    return all(abs(one - other) <= close * max(1.0, abs(one)) for one, other in pairs)


def _near_numbers(stored: Any, current: Any, close: float) -> bool:
    if not isinstance(stored, float) or not isinstance(current, float):
        return False  # counts and words are equal or not
    return abs(stored - current) <= close * max(abs(stored), abs(current), 1e-3)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "..."
