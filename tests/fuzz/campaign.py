"""Mutants of a surface, one after another: number N of a seed is always the same."""

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.hostile import SECRET, Outside, names
from tests.fuzz.json_mutants import short
from tests.fuzz.mutants import mutate
from tests.fuzz.surfaces import RANK, Command, Surface
from tests.fuzz.trial import USERS, Allowed, Outcome, forked, traced

STARTS = ("nvidia-smi", "lscpu", "uname", "ldconfig", "gcc", "cc", "c++", "g++", "ninja", "which", "git")


# Of DeepSpeed, which are compiled once a machine.
OPERATORS = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")
LINKED = "secret"  # the change that makes a link to another folder's file
# Links out of models are followed, as the hub's cache has them, though nothing of what they lead to may be shown.
RUNS_OWN = (
    "run/config.yaml",
    "run/metrics",
    "run/status",
    "run/state",
    "run/contents",
    "run/plan",
    "run/judge",
    "run/loggers",
    "run/events",
    "run/launcher",
    "run/checkpoints",
    "run/samples/",
    "samples/settings",
)


@dataclass(frozen=True)
class Result:
    """How one mutant's command ended."""

    number: int
    mutant: str
    words: list[str]
    fault: str | None
    code: int | None
    seconds: float
    processor_seconds: float
    last: str

    @property
    def holds_a_pickle(self) -> bool:
        """Whether something in it would run where it is unpickled."""
        return "pickle" in self.mutant or "trap" in self.mutant

    def holds_a_name(self, outside: Outside) -> bool:
        """Whether one of the hostile names stands in it."""
        return any(short(name) in self.mutant for name in names(outside) if len(name) > 1)


class Campaign:
    """Bases are built once below `scratch`, and copied for each mutant."""

    def __init__(self, scratch: Path, *, seed: int, traced: int = 0) -> None:
        self.scratch, self.seed, self._traced = scratch, seed, traced
        self.outside = Outside(scratch / "outside")
        self.outside.make()
        self._targets: dict[str, list[str]] = {}
        self._imported: set[str] = set()

    def run(self, surface: Surface, number: int, *, loud: bool = False) -> Result:
        """The mutant of this number. What the command imports and the folder are there from the first one on."""
        base = self._base(surface)
        if surface.name not in self._targets:
            self._targets[surface.name] = surface.targets(base)
        targets = self._targets[surface.name]
        folder = self._copied(base)
        random = Random(f"{self.seed} {surface.name} {number}")
        file = targets[number % len(targets)]
        mutant = mutate(folder, file, random, self.outside)
        command = _command_for(surface, file, random)
        elsewhere = [self.outside.folder, Path("/")] if surface.names_paths and file.endswith(".yaml") else []
        if mutant.what == LINKED and (surface.named or not file.startswith(RUNS_OWN)):
            elsewhere.append(self.outside.folder)
        return self._tried(surface, folder, command, number, str(mutant), elsewhere, loud=loud)

    def unchanged(self, surface: Surface) -> list[Result]:
        """What each command does with the folder as it is: where that is refused, so are all mutants, for nothing."""
        base = self._base(surface)
        commands = [each for place, each in enumerate(surface.commands) if each not in surface.commands[:place]]
        return [self._tried(surface, self._copied(base), command, -1, "unchanged") for command in commands]

    def _base(self, surface: Surface) -> Path:
        self._import(as_rank=any(command.as_rank for command in surface.commands))
        base = self.scratch / "bases" / surface.build.__name__
        if not base.is_dir():
            base.mkdir(parents=True)
            surface.build(base)
        return base

    def _import(self, *, as_rank: bool) -> None:
        if not self._imported:
            _import_most()
            self._imported.add("commands")
        if as_rank and "ranks" not in self._imported:
            import memdiff.training.one_rank

            assert memdiff.training.one_rank
            self._imported.add("ranks")

    def _copied(self, base: Path) -> Path:
        conversions = self.scratch / "cache/memdiff/weights"  # of pickles, each as large as what it was made of
        shutil.rmtree(conversions, ignore_errors=True)
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        self.outside.mark.unlink(missing_ok=True)
        return folder

    def _tried(
        self,
        surface: Surface,
        folder: Path,
        command: Command,
        number: int,
        mutant: str,
        elsewhere: Sequence[Path] = (),
        *,
        loud: bool = False,
    ) -> Result:
        own = [folder, self.scratch / "tmp", self.scratch / "cache", OPERATORS]
        environment = RANK | {"MASTER_PORT": str(free_port())} if command.as_rank else {}
        run = traced if self._traced and number >= 0 and number % self._traced == 0 else forked
        outcome = run(command.words, folder, Allowed([folder, *elsewhere], own, STARTS), environment)
        fault = outcome.fault(self.outside.mark.exists()) or (None if surface.named else self._leaked(folder, outcome))
        if loud:
            sys.stdout.write(f"{mutant}\n{outcome.said}\n{outcome.touched}\n")
        words, seconds = list(command.words), (outcome.seconds, outcome.processor_seconds)
        return Result(number, mutant, words, fault, outcome.code, *seconds, _last(outcome))

    def _leaked(self, folder: Path, outcome: Outcome) -> str | None:
        """What was read from elsewhere and said, or written into what the command made."""
        secrets = (SECRET, Path(USERS).read_text().partition("\n")[0])
        made = [file for name in ("out", "new", "evaluation") for file in (folder / name).rglob("*")]
        made += [folder / "run/report.html"]
        for file in made:
            with contextlib.suppress(OSError):
                if file.is_symlink() or not file.is_file():
                    continue
                content = file.read_bytes()
                if any(secret.encode() in content for secret in secrets):
                    return "escape"
        return "escape" if any(secret in outcome.said for secret in secrets) else None


def _command_for(surface: Surface, file: str, random: Random) -> Command:
    """One that names the file's folder, where any does."""
    words = {file, file.partition("/")[0], Path(file).stem}
    naming = [
        command for command in surface.commands
        if any(word in words or word.partition("=")[0] in words or word.removesuffix(".yaml") in words
               or any(f"={name}" in word for name in words) for word in command.words)
    ]  # fmt: skip
    return random.choice(naming or list(surface.commands))


def _last(outcome: Outcome) -> str:
    lines = [line for line in outcome.said.splitlines() if line.strip()]
    said = ascii(lines[-1][:300]) if lines else ""
    return f"code {outcome.code}, {outcome.seconds:.1f} s, {outcome.touched[:3] or ''} {said}"


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _import_most() -> None:
    """What the commands import when they run, once, so that a fork of this process has it."""
    import diffusers
    import transformers

    import memdiff.evaluation.show
    import memdiff.planner.command
    import memdiff.planner.plan
    import memdiff.recipe.init
    import memdiff.reporting.html
    import memdiff.sampling.sample
    import memdiff.scoring.score
    import memdiff.training.before_launch
    import memdiff.training.preview

    for name in (
        "AutoModelForImageClassification",
        "AutoImageProcessor",
        "CLIPModel",
        "CLIPTokenizer",
        "OwlViTForObjectDetection",
    ):
        getattr(transformers, name)
    for name in ("UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler", "StableDiffusionXLPipeline"):
        getattr(diffusers, name)
    assert memdiff
