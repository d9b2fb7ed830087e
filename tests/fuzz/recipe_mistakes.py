"""Makers of recipes with one mistake each, of fifteen kinds, and of changed recipes that are right."""

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "launch/recipes"
WHOLE = ROOT / "benchmarks/recorder/record/kept/digits_run/config.yaml"  # every key of its sections written out
Path_ = tuple[Any, ...]


@dataclass(frozen=True)
class Recipe:
    """A text, and what the line that refuses it must name."""

    kind: str
    text: bytes
    named: str


def bases() -> list[dict[str, Any]]:
    """The recipes that ship and need no file beside them, and one with all its defaults."""
    loaded = [yaml.safe_load(file.read_text()) for file in sorted(RECIPES.glob("*.yaml"))]
    return [yaml.safe_load(WHOLE.read_text()), *(base for base in loaded if "sft_pg" not in str(base))]


def keys_of(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every key of every section; no entries of plain lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(node, dict):
            yield (*path, key)
        if isinstance(value, dict | list):
            yield from keys_of(value, (*path, key))


def at(node: Any, path: Path_) -> Any:
    """What stands at that key."""
    for key in path:
        node = node[key]
    return node


def mistakes(mark: Path) -> dict[str, Callable[[Random], Recipe]]:
    """A maker of each kind of mistake."""

    def dumped(kind: str, content: Any, path: Path_) -> Recipe:
        return Recipe(kind, yaml.safe_dump(content, sort_keys=False).encode(), ".".join(map(str, path)))

    def chosen(random: Random, wanted: Callable[[Any], bool]) -> tuple[Any, Path_]:
        content = copy.deepcopy(random.choice(bases()))
        return content, random.choice([path for path in keys_of(content) if wanted(at(content, path))])

    def changed(kind: str, wanted: Callable[[Any], bool], value: Callable[[Random, Any], Any]) -> Callable:
        def make(random: Random) -> Recipe:
            content, path = chosen(random, wanted)
            node = at(content, path[:-1])
            node[path[-1]] = value(random, node[path[-1]])
            return dumped(kind, content, path)

        return make

    def typo(random: Random) -> Recipe:
        content, path = chosen(random, lambda value: True)
        node, key = at(content, path[:-1]), str(path[-1])
        place = random.randrange(len(key))
        other = random.choice((key[:place] + key[place + 1 :], key[:place] + "q" + key[place:], key + "s", key.upper()))
        other = other if other not in node and other else key + "_x"
        node[other] = node.pop(path[-1])
        return dumped("typo", content, (*path[:-1], other))

    def twice(random: Random) -> Recipe:
        content, path = chosen(random, lambda value: True)
        key = str(path[0])
        return Recipe("a key twice", yaml.safe_dump(content).encode() + f"{key}: {{}}\n".encode(), key)

    def text(kind: str, *texts: bytes) -> Callable[[Random], Recipe]:
        def make(random: Random) -> Recipe:
            return Recipe(kind, random.choice(texts), "recipe.yaml")

        return make

    def within(kind: str, change: Callable[[Random, str], str | bytes]) -> Callable[[Random], Recipe]:
        def make(random: Random) -> Recipe:
            whole = yaml.safe_dump(random.choice(bases()), sort_keys=False)
            made = change(random, whole)
            return Recipe(kind, made if isinstance(made, bytes) else made.encode(), "recipe.yaml")

        return make

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    bomb = b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nmodel: [*b, *b]\n"
    tags = [
        f"model: !!python/object/apply:os.system ['touch {mark}']\n",
        f"!!python/object/new:exec [\"open('{mark}','w')\"]\n",
        f"reward: [!!python/object/apply:subprocess.check_output [[touch, '{mark}']]]\n",
        "model: !!python/name:os.system\n",
        "model: !!python/module:evil\n", "model: !evil {kind: embedded}\n", "run: !!python/tuple [1]\n",
    ]  # fmt: skip
    unwanted = (math.nan, math.inf, -math.inf)
    return {
        "typo": typo,
        "wrong type of a value": changed(
            "wrong type of a value",
            lambda v: not isinstance(v, dict | list),
            lambda r, v: {"x": r.choice((1, "y", None))},
        ),
        "wrong type of a section": changed(
            "wrong type of a section", lambda v: isinstance(v, dict), lambda r, v: r.choice((3.5, [[1]], True))
        ),
        "not finite": changed("not finite", is_number, lambda r, v: r.choice(unwanted)),
        "out of all bounds": changed(
            "out of all bounds", is_number, lambda r, v: r.choice((-(10**30), 10**30, -1e300, 1e300, 10**4000))
        ),
        "a text for a number": changed(
            "a text for a number", is_number, lambda r, v: r.choice(("many", "1 000", "1,5", "", "0x10g", "one"))
        ),
        "a wrong kind": changed(
            "a wrong kind",
            lambda v: isinstance(v, dict) and "kind" in v,
            lambda r, v: {**v, "kind": r.choice(("ddpo", "x", 7, [1], "", "reinforce "))},
        ),
        "a key twice": twice,
        "tabs": within(
            "tabs", lambda r, whole: re.sub(r"^  ", "\t", whole, count=1 + r.randrange(3), flags=re.MULTILINE)
        ),
        "a byte-order mark and binary": within(
            "a byte-order mark and binary",
            lambda r, whole: r.choice(
                (
                    b"\xef\xbb\xbf\xff\x00",
                    whole.encode("utf-16"),
                    b"\x89PNG\r\n" + r.randbytes(200),
                    whole[:60].encode() + b"\x00\xff",
                    whole.encode("utf-32"),
                )
            ),
        ),
        "cut": within(
            "cut",
            lambda r, whole: (
                whole[: r.randrange(whole.index("\n"), len(whole) // 3)]
                + r.choice((": [", "{", "\n - x: [1", '"', "'a\n"))
            ),
        ),
        "empty": text(
            "empty",
            b"",
            b"\n\n",
            b"# nothing\n",
            b"---\n",
            b"null\n",
            b"7\n",
            b"- model\n",
            b"text\n",
            b"[]",
            b"{}",
            b"---\na: 1\n---\nb: 2\n",
        ),
        "a bomb": text(
            "a bomb",
            bomb,
            b"[" * 2000,
            b"{" * 2000,
            b"- " * 500,
            b"model: " + b"[" * 90 + b"]" * 90,
            b"a: &a [*a]\n",
            b"x: " + b"9" * 5000,
            b"model: {<<: &m {kind: embedded}}\n",
            b"- 1\n" * 20_000,
            b"a" * 300_000,
        ),
        "a tag": text("a tag", *(tag.encode() for tag in tags)),
        "a section missing": lambda random: _without(random, copy.deepcopy(random.choice(bases()))),
    }


def _without(random: Random, content: dict[str, Any]) -> Recipe:
    section = random.choice([name for name in ("model", "method", "reward") if name in content])
    del content[section]
    return Recipe("a section missing", yaml.safe_dump(content).encode(), section)


def right(random: Random) -> bytes:
    """A recipe that is right: one that ships, with some keys at other values that their bounds allow."""
    content = copy.deepcopy(random.choice(bases()[1:]))
    changes = {
        "run": {
            "rounds": random.randint(1, 9999),
            "seed": random.choice((0, 7, 2**63 - 1)),
            "save_every": random.randint(1, 99),
        },
        "optimizer": {
            "learning_rate": random.choice((1e-6, 3e-4, 0.01)),
            "weight_decay": random.choice((0, 0.1)),
            "clip_norm": random.choice((0.5, 10)),
        },
        "guards": {"diversity": random.choice((0.1, 0.9)), "stop": random.choice((True, False))},
    }
    for section in random.sample(sorted(changes), 2):
        content[section] = (content.get(section) or {}) | changes[section]
    return yaml.safe_dump(content, sort_keys=random.random() < 0.5).encode()
