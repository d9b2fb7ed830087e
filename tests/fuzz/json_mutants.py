"""One change somewhere in a JSON or YAML document."""

import copy
import json
from random import Random
from typing import Any

import yaml

from tests.fuzz.hostile import Outside, code_keys, values

Place = tuple[Any, Any]  # a container, and a key or number in it


def changed_json(content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """What was changed, and the document with it. Of lines of JSON one is changed."""
    text = content.decode()
    try:
        document = json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        number = random.randrange(len(lines))
        try:
            what, changed = changed_json(lines[number].encode(), random, outside)
        except (ValueError, IndexError):  # neither JSON nor lines of it
            return "NaN", b"NaN"
        lines[number] = changed.decode("utf-8", errors="surrogateescape").replace("\n", " ")
        return f"line {number + 1}: {what}", "\n".join(lines).encode("utf-8", errors="surrogateescape") + b"\n"
    return _changed_text(text, random) if random.random() < 0.15 else _changed_document(document, random, outside)


def changed_yaml(content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """The same of YAML, with its own ways to go wrong."""
    if random.random() < 0.25:
        mark = str(outside.mark)
        texts = [
            f"!!python/object/apply:os.system ['touch {mark}']\n",
            f"model: !!python/object/apply:builtins.open ['{mark}', 'w']\n",
            "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodel: *c\n",
            "model: {<<: {kind: embedded}}\n", "model:\n\tkind: embedded\n", "? [a, b]\n: 1\n", "{" * 500, "- " * 500,
            "model: !!timestamp 2001-99-99\n", "model: 0x" + "f" * 5000 + "\n", "1: 2\nnull: 3\n",
            "---\na: 1\n---\nb: 2\n",
            "%YAML 9.9\n---\na: 1\n", "a: &a [*a]\n", "&a [*a]", "model: \"\\ud800\"\n", "!!binary x", "!!set {a, b}",
        ]  # fmt: skip
        number = random.randrange(len(texts))
        return f"yaml text {number}", texts[number].encode()
    try:
        document = yaml.safe_load(content)
    except yaml.YAMLError:
        return "null", b"null\n"
    what, changed = _changed_document(document, random, outside)
    try:
        return what, yaml.safe_dump(json.loads(changed, parse_int=_number), sort_keys=False).encode()
    except (ValueError, UnicodeEncodeError):
        return what, changed


def _number(digits: str) -> Any:
    return int(digits) if len(digits) < 4000 else digits


def _changed_document(document: Any, random: Random, outside: Outside) -> tuple[str, bytes]:
    document = copy.deepcopy(document)
    places: list[Place] = [place for place in _places(document) if place[0] is not None]
    kind = random.choice(("replace",) * 6 + ("remove", "add", "code", "code", "key", "root"))
    replacement = random.choice(values(outside))
    if kind == "root" or not places:
        return f"all of it is {short(replacement)}", _dumped(replacement)
    container, key = random.choice(places)
    if kind == "remove":
        del container[key]
    elif kind == "add" or kind == "code":
        added, value = random.choice(code_keys()) if kind == "code" else (f"new_{random.randrange(9)}", replacement)
        target = document if kind == "code" and isinstance(document, dict) else container
        if isinstance(target, dict):
            target[added] = value
        else:
            target.append(value)
        return f"{added} is {short(value)}", _dumped(document)
    elif kind == "key" and isinstance(container, dict):
        container[str(replacement)] = container.pop(key)
        return f"{key} is called {short(str(replacement))}", _dumped(document)
    else:
        container[key] = replacement
    return f"{kind} {key}: {short(replacement)}", _dumped(document)


def _changed_text(text: str, random: Random) -> tuple[str, bytes]:
    at = random.randrange(len(text) + 1)
    nested = 100_000
    changed = {
        "a comma": text[:at] + "," + text[at:],
        "a comment": "// x\n" + text,
        "deep brackets": "[" * nested,
        "deep objects": '{"a":' * nested + "1" + "}" * nested,
        "the keys twice": text.replace("{", '{"_class_name": "x", "_class_name": "y", ', 1),
        "a number of 5,000 digits": text.replace("{", '{"x": ' + "9" * 5000 + ", ", 1),
        "text behind": text + text,
        "a byte-order mark": "\ufeff" + text,
        "single quotes": text.replace('"', "'"),
        "NaN": "NaN",
        "a lone surrogate": text.replace('"', '"\\ud800', 1),
    }
    what = random.choice(sorted(changed))
    return what, changed[what].encode()


def _places(node: Any, depth: int = 0) -> list[Place]:
    """Every place in a document, those of long lists at their ends."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = [(number, node[number]) for number in sorted({0, len(node) - 1} & set(range(len(node))))]
    else:
        return []
    inner = [place for _, value in items[:60] for place in _places(value, depth + 1)] if depth < 8 else []
    return [(node, key) for key, _ in items] + inner


def _dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def short(value: Any) -> str:
    """As a mutant says it: of long ones the beginning."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:40] + f"... ({len(text)} characters)"
