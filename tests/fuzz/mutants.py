"""One change to one file of a folder."""

import hashlib
import json
import os
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.hostile import CODE, Outside, names, pickles
from tests.fuzz.json_mutants import changed_json, changed_yaml
from tests.fuzz.weights import changed_safetensors, changed_torch

JSON, YAML, TORCH = (".json", ".jsonl", ".ndjson"), (".yaml", ".yml"), (".pt", ".pth", ".bin", ".ckpt")
MANIFEST = "MANIFEST.json"
PICTURES = (".png", ".gif", ".jpg")


@dataclass(frozen=True)
class Mutant:
    """What was done to which file."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def mutate(folder: Path, file: str, random: Random, outside: Outside, *, whole: float = 0.4) -> Mutant:
    """Changes `file` in `folder`. `whole`: how often the file as such is struck, and not what stands in it."""
    for beside in {folder, (folder / file).parent}:
        (beside / f"{CODE}.py").write_text(outside.code())
    path = folder / file
    content = path.read_bytes()
    if random.random() < whole:
        return Mutant(file, _struck(folder, path, content, random, outside))
    what, changed = _changed_inside(path, content, random, outside)
    path.write_bytes(changed)
    return Mutant(file, what + _certified(path, random))


def _certified(path: Path, random: Random) -> str:
    """Most times a changed file of a checkpoint gets a manifest that says it is right."""
    checkpoint = next((place for place in path.parents if (place / MANIFEST).is_file()), None)
    if checkpoint is None or path.name == MANIFEST or random.random() < 0.25:
        return ""
    entries = {}
    for name in json.loads((checkpoint / MANIFEST).read_bytes()):
        content = (checkpoint / name).read_bytes()
        entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(entries))
    return ", under a manifest that fits"


def _changed_inside(path: Path, content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """By the format that the name promises."""
    suffix = path.suffix.lower()
    if suffix in JSON:
        return changed_json(content, random, outside)
    if suffix in YAML:
        return changed_yaml(content, random, outside)
    if suffix == ".safetensors":
        return changed_safetensors(content, random, outside)
    if suffix in TORCH:
        return changed_torch(content, random, outside)
    if suffix in PICTURES:
        return _changed_picture(content, random)
    return _changed_lines(content, random, outside)


def _struck(folder: Path, path: Path, content: bytes, random: Random, outside: Outside) -> str:
    """Cut, emptied, another file, no file, a link, a pipe, a folder."""
    others = sorted(file for file in folder.rglob("*") if file.is_file() and file != path and not file.is_symlink())
    ways = (
        "cut", "cut", "empty", "removed", "noise", "flipped", "pickle", "pickle", "folder", "loop", "secret", "pipe",
        "swapped", "swapped", "zeros", "utf-16", "long", "dangling", "unreadable name", "behind",
    )  # fmt: skip
    way = random.choice(ways)
    path.unlink()
    match way:
        case "cut":
            length = random.choice(
                (1, 7, len(content) // 2, max(0, len(content) - 1), random.randrange(len(content) + 1))
            )
            path.write_bytes(content[:length])
            return f"cut to {length} of {len(content)} bytes"
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(random.randbytes(random.choice((1, 8, 100, 5000))))
        case "flipped":
            position = random.randrange(max(1, min(len(content), 4000)))
            path.write_bytes(content[:position] + bytes([random.randrange(256)]) + content[position + 1 :])
            return f"byte {position} flipped"
        case "pickle":
            number, many = random.randrange(5), pickles(outside)
            path.write_bytes(many[number])
            return f"pickle {number}"
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "secret":
            path.symlink_to(outside.secret)
        case "dangling":
            path.symlink_to("nowhere/at/all")
        case "pipe":
            os.mkfifo(path)
        case "swapped" if others:
            other = random.choice(others)
            shutil.copyfile(other, path)
            return f"{other.relative_to(folder)} in its place"
        case "zeros":
            path.write_bytes(bytes(len(content) or 100))
        case "utf-16":
            path.write_bytes(content.decode(errors="replace").encode("utf-16"))
        case "long":
            path.write_bytes(b"a" * 2**20)
        case "behind":
            path.write_bytes(content + random.randbytes(64))
        case "unreadable name":
            path.with_name(f"a\nb\x1b[31m{path.suffix}").write_bytes(content)
        case _:
            pass
    return way


def _changed_picture(content: bytes, random: Random) -> tuple[str, bytes]:
    """A PNG of other sizes than it says, or that hides what is none."""
    side = random.choice((0, 1, 2**31 - 1, 60_000))
    ways = {
        f"a PNG of {side} x {side}": _png(side, side),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "HTML": b"<script>alert(1)</script>",
        "XBM": b"#define x_width 9\n#define x_height 9\nstatic char x_bits[] = {0x00};",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(secret) run\n",
        "TIFF": b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\x00" * 40,
        "GIF of nothing": b"GIF89a\x00\x00\x00\x00\x00\x00\x00;",
        "a PNG with another's end": content[: len(content) // 2] + content[-20:],
    }
    what = random.choice(sorted(ways))
    return what, ways[what]


def _png(width: int, height: int) -> bytes:
    """A header of this size over ten bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def _changed_lines(content: bytes, random: Random, outside: Outside) -> tuple[str, bytes]:
    """Texts: a line that is another."""
    lines = content.decode(errors="replace").splitlines() or [""]
    number = random.randrange(len(lines))
    new = random.choice(
        [*names(outside), '"unclosed', "a,b,c,d,e,f", "x" * 200_000, "\x00", '{"prompt": 1}', "[1]", "# x", "prompt"]
    )
    lines[number] = new
    return f"line {number + 1} is {ascii(new)[:40]}", "\n".join(lines).encode(errors="surrogatepass")
