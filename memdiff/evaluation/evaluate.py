"""Sources side by side: sampled, scored, compared. The work of `memdiff eval`."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from memdiff import __version__
from memdiff.digits.classifiers import as_digits, load_classifier
from memdiff.digits.judge import judge_images
from memdiff.evaluation.distances import (
    Metric,
    frechet_inception_distance,
    kernel_inception_distance,
    mean_pairwise_distance,
)
from memdiff.evaluation.features import Network, features_of
from memdiff.evaluation.geneval import ObjectChecks
from memdiff.evaluation.inception import InceptionFile, load_inception
from memdiff.evaluation.intervals import Estimate, difference_of, mean_of
from memdiff.evaluation.request import RESIZES, Evaluation, Subject, check_sizes
from memdiff.models.quiet import quiet_libraries
from memdiff.rewards.clip import load_image_tower
from memdiff.runtime.image_files import sampled_images
from memdiff.runtime.placement import place
from memdiff.runtime.ranks import device_of_this_process
from memdiff.runtime.screen import screen
from memdiff.runtime.state_dicts import told_in_one_line
from memdiff.sampling.processes import sample_over_processes
from memdiff.scoring.images import read_image
from memdiff.scoring.score import score_rows
from memdiff.training.environment import commit

PACKAGES = ("torch", "torchmetrics", "diffusers", "transformers")
Advance = Callable[[int], None]


@dataclass
class Result:
    """What came out for one source. `scores` are one number for each image; `metrics` are figures of the whole."""

    subject: Subject
    files: Sequence[Path]
    scores: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, Estimate] = field(default_factory=dict)

    def categories(self, evaluation: Evaluation) -> dict[str, dict[str, Estimate]]:
        """Means of the scores over the images of each category of the prompt set."""
        prompts = evaluation.prompts
        groups: dict[str, list[int]] = {}
        for image in range(len(self.files)) if prompts else ():
            groups.setdefault(prompts[image % len(prompts)].category, []).append(image)
        groups.pop("", None)
        return {
            category: {name: mean_of([scores[image] for image in images]) for name, scores in self.scores.items()}
            for category, images in groups.items()
        }


@dataclass(frozen=True)
class Outcome:
    """An evaluation that is done."""

    evaluation: Evaluation
    results: Sequence[Result]
    inception: InceptionFile | None
    environment: Mapping[str, Any]

    def differences(self, result: Result) -> dict[str, Estimate]:
        """Of a sampled source's scores to the first's, image by image: they share noise and text. Else empty."""
        first = self.results[0]
        if result is first or result.subject.request is None or first.subject.request is None:
            return {}
        return {name: difference_of(scores, first.scores[name]) for name, scores in result.scores.items()}


def evaluate(evaluation: Evaluation, gpus: int | None = None) -> Outcome:
    """Samples what are models, on `gpus` processes, and measures all.

    Raises ConfigError for what can't be read or loaded, RewardError for a reward that fails.
    """
    options = evaluation.options
    quiet_libraries()
    results = [Result(subject, _files_of(subject, gpus)) for subject in evaluation.subjects]
    check_sizes({**{each.subject.name: each.files for each in results}, "--real": evaluation.real}, options.size)
    _score(evaluation, results)
    device = device_of_this_process()
    _check_objects(evaluation, results, device)
    inception = _compare(evaluation, results, device)
    if evaluation.digits:
        _judge(evaluation, results)
    for result in results:
        result.metrics = {name: mean_of(scores) for name, scores in result.scores.items()} | result.metrics
    return Outcome(evaluation, results, inception, _environment(device))


def _files_of(subject: Subject, gpus: int | None) -> Sequence[Path]:
    if subject.request is None:
        return subject.files
    return sampled_images(sample_over_processes(subject.request, gpus))


def _warn_of_few(evaluation: Evaluation, results: Sequence[Result], what: str, features: int) -> None:
    """Covariances of fewer images than features are singular, and the distance says above all how few there are."""
    sets = {result.subject.name: len(result.files) for result in results}
    if what == "FID":
        sets["--real"] = len(evaluation.real)
    few = ", ".join(f"{name} {count}" for name, count in sets.items() if count < features)
    if few:
        evaluation.warnings.append(
            f"{what} has {features} features and fewer images ({few}): its bias is large; compare it only at "
            "equal numbers"
        )


def _score(evaluation: Evaluation, results: Sequence[Result]) -> None:
    """Every reward on every image: each reward is loaded once."""
    if not evaluation.parts:
        return
    files = [file for result in results for file in result.files]
    texts = [text for result in results for text in result.subject.texts]
    rows = iter(score_rows(files, evaluation.parts, texts))
    for result in results:
        own = [next(rows) for _ in result.files]
        result.scores |= {name: [row.scores[name] for row in own] for name in evaluation.parts}


def _check_objects(evaluation: Evaluation, results: Sequence[Result], device: torch.device) -> None:
    prompts = evaluation.prompts
    if not any(prompt.scene for prompt in prompts):
        return
    if evaluation.options.detector is None:
        evaluation.warnings.append("GenEval's objects were not checked: give --detector PATH for that")
        return
    if not all(prompt.scene for prompt in prompts):
        evaluation.warnings.append("GenEval's objects were not checked: --prompts holds texts without its metadata too")
        return
    evaluation.warnings.append(
        "GenEval's colours are not checked, and objects are detected by another network than its own: compare the "
        "figures with each other, not with published ones"
    )
    checks = ObjectChecks.load(evaluation.options.detector, prompts, device)
    for result in results:
        scenes = [prompts[image % len(prompts)] for image in range(len(result.files))]
        with _progress(f"objects of {result.subject.name}", len(scenes)) as advance:
            result.scores["geneval_objects"] = checks.check(result.files, scenes, advance)
        tasks = [figures["geneval_objects"].value for figures in result.categories(evaluation).values()]
        mean = sum(tasks) / len(tasks)  # GenEval's overall score: each task counts alike
        result.metrics["geneval_objects_over_tasks"] = Estimate(mean, None, None, len(result.files))


def _compare(evaluation: Evaluation, results: Sequence[Result], device: torch.device) -> InceptionFile | None:
    """FID, KID and diversity, a network at a time."""
    file = None
    if evaluation.real or "inception" in evaluation.diversities:
        file = _compare_inception(evaluation, results, device)
    networks: list[tuple[str, Network, Metric]] = []
    if "clip" in evaluation.diversities:
        with told_in_one_line(f"--clip {evaluation.options.clip}"):
            networks.append(("diversity_clip", load_image_tower(evaluation.options.clip, device), "cosine"))
    if "judge" in evaluation.diversities:
        judge = load_classifier("judge")
        place(judge, device)
        networks.append(("diversity_judge", judge.features, "euclidean"))
    for name, network, metric in networks:
        for result in results:
            features_NF = _features(network, result.files, result.subject.name, evaluation, device)
            result.metrics[name] = mean_pairwise_distance(features_NF, metric)
    return file


def _compare_inception(evaluation: Evaluation, results: Sequence[Result], device: torch.device) -> InceptionFile:
    options = evaluation.options
    inception, file = load_inception(options.inception, evaluation.resize, device)
    if not file.published:
        evaluation.warnings.append(
            f"{file.path} is not the published FID Inception (its sha256 begins with {file.sha256[:8]}): FID and KID "
            "compare with no others"
        )
    real_MF = _features(inception, evaluation.real, "--real", evaluation, device) if evaluation.real else None
    if real_MF is not None:
        _warn_of_few(evaluation, results, "FID", inception.num_features)
    for result in results:
        features_NF = _features(inception, result.files, result.subject.name, evaluation, device)
        if real_MF is not None:
            kid, kid_std = kernel_inception_distance(features_NF, real_MF, options.seed)
            figures = {"fid": frechet_inception_distance(features_NF, real_MF), "kid": kid, "kid_subsets_std": kid_std}
            result.metrics |= {name: Estimate(each, None, None, len(result.files)) for name, each in figures.items()}
        if "inception" in evaluation.diversities:
            result.metrics["diversity_inception"] = mean_pairwise_distance(features_NF, "euclidean")
    return file


def _features(
    network: Network, files: Sequence[Path], name: str, evaluation: Evaluation, device: torch.device
) -> torch.Tensor:
    with _progress(f"features of {name}", len(files)) as advance:
        return features_of(network, files, side=evaluation.options.size, device=device, advance=advance)


def _judge(evaluation: Evaluation, results: Sequence[Result]) -> None:
    """The digits' own distance, to real digits of the same mix (memdiff/digits/judge.py)."""
    judge = load_classifier("judge")
    _warn_of_few(evaluation, results, "the digits' Frechet distance", judge.num_features)
    for result in results:
        images_N1HW = torch.cat([as_digits(read_image(file)[None]) for file in result.files])
        seen = judge_images(images_N1HW, judge)
        count = seen.num_images
        result.metrics["digits_frechet"] = Estimate(seen.frechet_distance, None, None, count)
        result.metrics["digits_5_to_9"] = Estimate(seen.minority_share, seen.share_low, seen.share_high, count)
        recognised = round(seen.recognised_share * count)
        result.metrics["digits_recognised"] = mean_of([1.0] * recognised + [0.0] * (count - recognised))


def _environment(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "memdiff": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU {platform.machine()}",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """A bar on stderr where somebody looks."""
    console = screen(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def resize_words(evaluation: Evaluation) -> dict[str, str]:
    """Which resizes stand between an image and each network that this evaluation asks."""
    options = evaluation.options
    before = f"shortest edge to {options.size}, centre cut, antialiased bicubic; then " if options.size else ""
    asked = {
        "inception": bool(evaluation.real) or "inception" in evaluation.diversities,
        "clip": "clip" in evaluation.diversities,
        "judge": evaluation.digits or "judge" in evaluation.diversities,
        "rewards": bool(evaluation.parts),
    }
    words = {
        "inception": before + RESIZES[evaluation.resize],
        "clip": before + "shortest edge to the network's side, centre cut, antialiased bicubic",
        "judge": before + "antialiased bilinear to 16 x 16, grey",
        "rewards": "each reward's own, of the image as it lies on disk",
    }
    return {network: text for network, text in words.items() if asked[network]}


def finite(value: float | None) -> float | None:
    """As JSON can hold it: None for what is not finite."""
    return value if value is not None and math.isfinite(value) else None
