"""What a script or a notebook calls: read_recipe, plan, train, sample, score, evaluate. `import memdiff` offers
them.

Nothing heavy is loaded before one of them runs. Mistakes are memdiff.errors' exceptions, with the line that the command
line would print.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from memdiff.runtime.announce import on_stderr, said_if_slow
from memdiff.runtime.quiet_imports import quiet_imports

if TYPE_CHECKING:
    from memdiff.planner.plan import Plan
    from memdiff.recipe.recipe import Recipe
    from memdiff.training.run_folder import Resume, RunFolder

RecipeLike: TypeAlias = "str | Path | Mapping[str, Any] | Recipe"  # a file, the name of one that ships, plain data
LOADING = "loading torch and diffusers"
RewardFunction = Callable[..., Any]  # score(images_BCHW, prompts) -> B numbers
RewardLike: TypeAlias = "str | Mapping[str, Any] | RewardFunction"  # KIND:key=value,..., a recipe's part, a function


@dataclass(frozen=True)
class Run:
    """A run folder: what was measured, and what was made."""

    folder: Path

    @property
    def state(self) -> str:
        """complete, stopped, failed or running."""
        return str(self._folder().status().get("state", "running"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: one per round, those of evaluations among them."""
        return self._folder().rows()

    @property
    def images(self) -> dict[int, Path]:
        """The grids of evaluations by their rounds, all from the same noise."""
        return self._folder().sample_files()

    @property
    def model(self) -> Path:
        """The trained model or adapter, which diffusers loads and `memdiff.sample` takes."""
        return self._folder().model

    @property
    def report(self) -> Path:
        """report.html, written when the run completed."""
        return self.folder / "report.html"

    def _folder(self) -> Any:
        from memdiff.training.run_folder import RunFolder

        return RunFolder(self.folder)


@dataclass(frozen=True)
class Samples:
    """Sampled images. A notebook shows the grid of them."""

    folder: Path
    images: list[Path] = field(repr=False)
    grid: Path = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.grid.read_bytes()


@dataclass(frozen=True)
class Evaluated:
    """Sources that were compared. A notebook shows their images side by side."""

    folder: Path
    figures: dict[str, Any] = field(repr=False)  # what eval.json holds: settings, metrics by source, warnings

    def __getitem__(self, source: str) -> dict[str, dict[str, float | int | None]]:
        """Every metric of a source by its name: value, low and high of its 95 % interval, images."""
        return next(each["metrics"] for each in self.figures["sources"] if each["name"] == source)

    def _repr_png_(self) -> bytes:
        return (self.folder / "eval.png").read_bytes()


def read_recipe(recipe: RecipeLike, changes: Mapping[str, Any] | None = None) -> "Recipe":
    """A checked recipe: from a file, the name of one that ships, or plain data, with `{"run.rounds": 5}` laid over it.

    Raises ConfigError with the key, what was got and what is allowed.
    """
    quiet_imports()
    from memdiff.recipe.reading import check_recipe, laid_over, read_recipe_data
    from memdiff.recipe.recipe import Recipe

    folder = None
    if isinstance(recipe, Recipe):
        source, raw = "the recipe", recipe.model_dump(mode="json")
    elif isinstance(recipe, Mapping):
        source, raw = "the recipe", dict(recipe)
    else:
        raw, path = read_recipe_data(Path(recipe))
        source, folder = path.name, path.resolve().parent
    return check_recipe(laid_over(raw, changes or {}), source=source, folder=folder)


def plan(
    recipe: RecipeLike,
    *,
    gpu: str = "t4",
    gpus: int = 1,
    budget_gib: float | None = None,
    changes: Mapping[str, Any] | None = None,
) -> "Plan":
    """What a run will need on `gpus` cards: its peak, the fastest setting that fits, what every knob saves.

    `budget_gib` in the place of the card: what torch's allocator may hold on each. Takes up to minutes.
    """
    quiet_imports()
    from memdiff.memory.gpus import find_gpu
    from memdiff.planner.progress import PlanningProgress
    from memdiff.planner.round_cache import RoundCache, users_cache
    from memdiff.runtime.units import GIB

    checked = read_recipe(recipe, changes)
    checked.check_world_size(gpus)
    card = None if budget_gib is not None else find_gpu(gpu)
    budget = card.budget_bytes(gpus) if card else int((budget_gib or 0) * GIB)
    with PlanningProgress("the recipe") as progress:
        from memdiff.models.quiet import quiet_libraries
        from memdiff.planner.plan import make_plan
        from memdiff.planner.rounds import Measuring

        quiet_libraries()
        measuring = Measuring(cache=RoundCache(checked, users_cache()), progress=progress.update)
        return make_plan(checked, budget_bytes=budget, ranks=gpus, gpu=card, measuring=measuring)


def train(
    recipe: RecipeLike,
    reward: RewardFunction | Sequence[Mapping[str, Any]] | None = None,
    *,
    out: str | Path | None = None,
    gpus: int | None = None,
    resume: Literal["auto", "must", "never"] = "auto",
    changes: Mapping[str, Any] | None = None,
    ds_config: str | Path | None = None,
    differentiable: bool = False,
) -> Run:
    """Fine-tunes a model; called again, goes on where the run in `out` stopped.

    `reward` takes the place of the recipe's: a function `score(images_BCHW, prompts)` of this program
    (`differentiable`: its gradient may be used), or a list of parts as a recipe has them. One rank runs in this
    process; several are started by DeepSpeed's launcher, and take functions from files alone. `gpus`: every GPU there
    is, or one CPU rank. Raises what the command line would end with; a run that was asked to stop is `stopped`.
    """
    quiet_imports()
    from memdiff.errors import EXIT_STOPPED, ConfigError, MemdiffError
    from memdiff.rewards.handed_over import HERE, hand_over
    from memdiff.training.before_launch import check_arguments, check_before_launch
    from memdiff.training.launcher import choose_world_size
    from memdiff.training.run_folder import RunFolder
    from memdiff.training.start import CHECKING

    changed = dict(changes or {})
    if callable(reward):
        changed["reward"] = [{**hand_over(reward), "differentiable": differentiable}]
    elif reward is not None:
        changed["reward"] = list(reward)
    checked = read_recipe(recipe, changed)
    name = Path(recipe).stem if isinstance(recipe, str | Path) else "library"
    folder = RunFolder((Path(out) if out else Path("runs") / name).resolve())
    file = Path(ds_config).resolve() if ds_config else None
    with said_if_slow(CHECKING):
        check_arguments(checked, folder, gpus, resume, file)
        world_size = choose_world_size(gpus)
        checked.check_world_size(world_size)
    if world_size > 1 and any(getattr(part, "file", None) == HERE for part in checked.reward):
        raise ConfigError(
            f"a function of this program reaches no {world_size} processes; put it into a file and give "
            'reward=[{"kind": "python", "file": "my_reward.py"}], or gpus=1'
        )
    check_before_launch(checked, file, world_size)
    code = _trained(checked, folder, resume, file, world_size)
    if code not in (0, EXIT_STOPPED):
        error = MemdiffError(str(folder.status().get("message") or f"the run ended with exit code {code}"))
        error.exit_code = code
        raise error
    return Run(folder.path)


def _trained(checked: "Recipe", folder: "RunFolder", resume: "Resume", file: Path | None, world_size: int) -> int:
    """Trains in this process, or in several that the launcher starts; returns the exit code."""
    from memdiff.training.start import programs_stops, run_here, run_ranks, way_on

    with programs_stops() as stops:
        if world_size == 1:
            return run_here(checked, folder, resume, file, stops)
        words = ["train", str(folder.path / "config.yaml"), "--out", str(folder.path), "--resume", "auto"]
        words += ["--ds-config", str(file)] if file else []
        with folder.prepare(checked, resume, file):
            return 0 if way_on(checked, folder) else run_ranks(checked, folder, words, world_size, stops)


def sample(source: "str | Path | Run", *, num_images: int = 16, gpus: int | None = None, **options: Any) -> Samples:
    """Exactly `num_images` images of a run, a pipeline folder, a hub id, `digits` or `digits_text`.

    `options` are those of `memdiff sample`, with underscores: prompt, steps, guidance, lora_scale, mix, seed, out, ...
    """
    quiet_imports()
    with said_if_slow(LOADING, on_stderr):
        from memdiff.runtime.image_files import GRID, sampled_images
        from memdiff.sampling.processes import sample_over_processes
        from memdiff.sampling.request import make_request

    names = ("batch_size", "steps", "eta", "guidance", "prompt", "prompts", "lora_scale", "adapter_steps")
    names += ("height", "width", "config")
    known: dict[str, Any] = {
        **dict.fromkeys(names),
        "best": False,
        "seed": 0,
        "mix": (),
        "precision": "auto",
        "out": None,
    }
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(f"sample() has no option {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    options = {**known, **options}
    for name in ("prompts", "out"):
        options[name] = None if options[name] is None else Path(options[name])
    place = source.folder if isinstance(source, Run) else source
    folder = sample_over_processes(make_request(str(place), num_images=num_images, **options), gpus)
    return Samples(folder, sampled_images(folder), folder / GRID)


def score(
    images: str | Path | Sequence[str | Path] | Samples,
    reward: "RewardLike | Sequence[RewardLike]",
    *,
    prompt: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """A row per image: its file, its prompt and its score by each reward.

    `reward`: one or several. KIND or KIND:key=value,..., as `memdiff score` takes it, a part as a recipe has it, or a
    function. Without `prompt`: those beside sampled images.
    """
    quiet_imports()
    from memdiff.runtime.image_files import find_images, prompts_beside
    from memdiff.scoring.request import given_parts

    with said_if_slow(LOADING, on_stderr):
        from memdiff.scoring.score import score_rows

    several = images.images if isinstance(images, Samples) else [images] if isinstance(images, str | Path) else images
    files = find_images([str(image) for image in several])
    texts = prompts_beside(files) if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
    parts = given_parts(_given(reward), with_prompts=all(texts))
    return [{"image": row.image, "prompt": row.prompt, **row.scores} for row in score_rows(files, parts, texts)]


def evaluate(
    sources: "str | Path | Run | Samples | Sequence[str | Path] | Mapping[str, str | Path | Run | Samples]",
    reward: "RewardLike | Sequence[RewardLike]" = (),
    *,
    gpus: int | None = None,
    **options: Any,
) -> Evaluated:
    """Compares runs, pipelines, hub ids, embedded models and folders of images, from the same noise and texts.

    `sources`: one, several, or several by name. `reward` as `score` takes it. `options` are those of `memdiff eval`,
    with underscores: num_images, prompts (files), real, inception, diversity, digits, detector, size, seed, out, ...
    """
    quiet_imports()
    from memdiff.evaluation.request import Options, prepare

    known = Options.__dataclass_fields__.keys() - {"sources", "rewards"}
    unknown = options.keys() - known
    if unknown:
        names = ", ".join(sorted(known))
        raise TypeError(f"evaluate() has no option {', '.join(sorted(unknown))}; there are {names}")
    if isinstance(sources, Mapping):
        words = [f"{name}={_place(source)}" for name, source in sources.items()]
    else:
        words = [_place(source) for source in _listed(sources)]
    for name, kind in (("prompts", Path), ("diversity", str)):
        options[name] = [kind(value) for value in _listed(options.get(name, ()))]
    options["out"] = Path(options.get("out", "evaluation"))
    with said_if_slow(LOADING, on_stderr):
        prepared = prepare(Options(words, rewards=_given(reward), **options))
    with said_if_slow(LOADING, on_stderr):
        from memdiff.evaluation.evaluate import evaluate as compare
        from memdiff.evaluation.show import document, write

    outcome = compare(prepared, gpus)
    return Evaluated(write(outcome), document(outcome))


def _listed(values: Any) -> list[Any]:
    """One or several, as a list."""
    return [values] if isinstance(values, str | Path | Run | Samples) else list(values)


def _given(reward: "RewardLike | Sequence[RewardLike]") -> list[str | Mapping[str, Any]]:
    """One or several, as `given_parts` takes them."""
    from memdiff.rewards.handed_over import hand_over

    several = [reward] if isinstance(reward, str | Mapping) or callable(reward) else reward
    return [hand_over(each) if callable(each) else each for each in several]


def _place(source: "str | Path | Run | Samples") -> str:
    return str(source.folder if isinstance(source, Run | Samples) else source)
