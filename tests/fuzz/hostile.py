"""What hostile files hold: values, names, payloads, pickles that leave a mark where they are run."""

import io
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECRET = "the-secret-of-another-folder"
CODE = "evil"  # the module that lies beside the models


@dataclass(frozen=True)
class Outside:
    """What lies beside a trial's folder, and may neither be read nor written nor come about."""

    folder: Path

    @property
    def secret(self) -> Path:
        """A text file of somebody else's."""
        return self.folder / "secret.txt"

    @property
    def mark(self) -> Path:
        """Comes about where something of a file is run."""
        return self.folder / "mark"

    def make(self) -> None:
        """The folder, and what is not to be read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.secret.write_text(SECRET)

    def code(self) -> str:
        """A module that leaves the mark when it is imported."""
        return f"open({str(self.mark)!r}, 'w').close()\nclass Evil:\n    pass\n"


class Trap:
    """Unpickling it runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({self.mark!r}, 'w').close()",)


def pickles(outside: Outside) -> list[bytes]:
    """A plain one, one of protocol 0, one in torch's zip, one in numpy's array, one under a tensor's name."""
    trap = Trap(outside.mark)
    inner = pickle.dumps({"state_dict": {"weight": trap}}, protocol=2)
    array = io.BytesIO()
    np.save(array, np.array([trap], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", inner)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return [pickle.dumps(trap), pickle.dumps([trap], protocol=0), inner, archive.getvalue(), array.getvalue()]


def names(outside: Outside) -> list[str]:
    """Paths that lead out, names that no disk takes, names that steer a terminal or a page."""
    up = "../" * 3 + outside.folder.name
    return [
        str(outside.secret), str(outside.folder), f"{up}/secret.txt", up, "..", "../..", "/", "/etc/passwd",
        "/proc/self/environ", "/dev/zero", "file:///etc/passwd", "https://example.invalid/x", "~/x", "a\nb", "a\x00b",
        "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202etxt.exe", "\ud800", "x" * 5000, "../" * 1700, "con", " ", ".",
        "-rf", "--help", "$(touch x)", "`touch x`", "; touch x", "%s%n", "{0.__class__}", "{{ 7 * 7 }}",
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a/b/c", "a\\b", "*", "[a-z]",
    ]  # fmt: skip


def values(outside: Outside) -> list[Any]:
    """Of every type of JSON, and numbers beyond what is counted in."""
    deep: Any = []
    for _ in range(60):
        deep = [deep]
    return [
        None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 1e-320, math.nan, math.inf, -math.inf, 2**31, 2**63, -(2**64),
        10**400, "", "x", "1", "null", [], {}, [[]], [1], [1, 2], ["x"], [None], {"x": 1}, {"": None}, deep,
        "x" * 5000, ["x" * 5000], [0] * 5000, {str(number): number for number in range(2000)},
        {"auto_map": {"AutoConfig": f"{CODE}.Evil"}}, [CODE, "Evil"], ["os", "system"], ["subprocess", "Popen"],
        *names(outside),
    ]  # fmt: skip


def code_keys() -> list[tuple[str, Any]]:
    """Keys by which libraries look for code beside a model."""
    every = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor", "AutoTokenizer")
    return [
        ("auto_map", dict.fromkeys(every, f"{CODE}.Evil")),
        ("auto_map", f"{CODE}.Evil"),
        ("_class_name", [CODE, "Evil"]),
        ("_class_name", "Evil"),
        ("custom_pipeline", CODE),
        ("model_type", CODE),
        ("architectures", [f"{CODE}.Evil"]),
        ("tokenizer_class", f"{CODE}.Evil"),
        ("image_processor_type", f"{CODE}.Evil"),
        ("base_model_name_or_path", "../../outside"),
        ("base_model_class", {"parent_library": CODE, "base_model_class": "Evil"}),
        ("_name_or_path", "/etc/passwd"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("torch_dtype", "os.system"),
        ("dtype", "float99"),
        ("activation_fn", "os.system"),
        ("act_fn", CODE),
        ("hidden_act", CODE),
    ]
