"""What `memdiff eval` was asked for, checked: the sources, their images and texts, and the metrics. No torch."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from memdiff.errors import ConfigError
from memdiff.evaluation.prompt_sets import Prompt, PromptFile, read_prompt_set
from memdiff.models.config import EMBEDDED
from memdiff.models.single_file_kinds import SUFFIXES
from memdiff.rewards.config import AnyPart
from memdiff.runtime.image_files import find_images, images_of, open_image, prompts_beside
from memdiff.sampling.request import SampleRequest, make_request
from memdiff.scoring.request import given_parts
from memdiff.training.run_folder import RunFolder

NUM_IMAGES = 64  # of models without a prompt set, where the number was not given
INCEPTION = "RaphaelLiu/EvalCrafter-Models"  # a copy of the published file on the hub; its sha256 is looked at
CLIP = "openai/clip-vit-large-patch14"
INSTALL = "FID and KID need torchmetrics, which is not installed; pip install 'torchmetrics>=1.8,<2'"
Diversity = Literal["clip", "inception", "judge"]
DIVERSITIES: tuple[Diversity, ...] = ("clip", "inception", "judge")
Resize = Literal["pytorch-fid", "clean-fid"]
RESIZES: dict[Resize, str] = {
    "pytorch-fid": "bilinear without antialiasing to 299 x 299 (mseitzer/pytorch-fid)",
    "clean-fid": "antialiased bicubic to 299 x 299 (Parmar et al. 2022)",
}


@dataclass(frozen=True)
class Options:
    """As the command line has them, and with its defaults. None: what each source has, or nothing of the kind."""

    sources: Sequence[str]
    num_images: int | None = None
    prompt: str | None = None
    prompts: Sequence[Path] = ()
    rewards: Sequence[str | Mapping[str, Any]] = ()
    real: str | None = None
    inception: str = INCEPTION
    resize: str = "pytorch-fid"
    digits: bool | None = None
    diversity: Sequence[str] = ()
    clip: str = CLIP
    detector: str | None = None
    size: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    seed: int = 0
    height: int | None = None
    width: int | None = None
    config: str | None = None
    precision: str = "auto"
    best: bool = False
    out: Path = Path("evaluation")


@dataclass(frozen=True)
class Subject:
    """One source under its name: a model to be sampled, or images that lie there."""

    name: str
    source: str
    request: SampleRequest | None = None
    files: Sequence[Path] = ()
    texts: Sequence[str] = field(default=(), repr=False)  # one for each image; empty ones where there are none


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known before a network is loaded."""

    options: Options
    subjects: Sequence[Subject]
    num_images: int
    prompt_files: Sequence[PromptFile]
    prompts: Sequence[Prompt]  # image i is made from number i mod P; empty: no set was given
    parts: Mapping[str, AnyPart]
    real: Sequence[Path]
    digits: bool
    diversities: Sequence[Diversity]
    resize: Resize
    warnings: list[str]


def prepare(options: Options) -> Evaluation:
    """Checks everything that can be checked without a network. Raises ConfigError in one line."""
    if not options.sources:
        raise ConfigError("eval needs a source: a run folder, a pipeline folder, a hub id, digits, or images")
    if options.prompt is not None and options.prompts:
        raise ConfigError("--prompt and --prompts can't be given together; put the text into the file")
    files = [read_prompt_set(path) for path in options.prompts]
    prompts = [prompt for file in files for prompt in file.prompts]
    if options.prompt is not None:
        prompts = [Prompt(options.prompt)]
    real = _real_images(options)
    named = _names(options.sources)
    if options.best and not any(RunFolder(Path(source)).exists() for source in named.values()):
        raise ConfigError("--best needs a run folder among the sources")
    places = {name: _images_at(source) for name, source in named.items()}
    if options.config is not None and not any(Path(source).suffix in SUFFIXES for source in named.values()):
        raise ConfigError("--config goes with a model in one file, and no source is one; leave it out")
    count = _number_of_images(options, places, len(prompts) if files else 0)
    warnings: list[str] = []
    subjects = [
        _model(name, source, options, count, prompts)
        if (images := places[name]) is None
        else _images(name, source, images[:count], prompts)
        for name, source in named.items()
    ]
    warnings += [
        f"{subject.name} has {len(subject.files)} images and others have {count}: distances depend on the number"
        for subject in subjects
        if subject.request is None and len(subject.files) < count
    ]
    _same_texts(subjects)
    _check_places(subjects, real)
    check_sizes({**{subject.name: subject.files for subject in subjects}, "--real": real}, options.size)
    if real and count < 2:
        raise ConfigError(f"FID and KID need at least 2 images of each source, got --num-images {count}")
    digits = all(shows_digits(source) for source in named.values()) if options.digits is None else options.digits
    return Evaluation(
        options, subjects, count, files, prompts,
        parts=given_parts(options.rewards, with_prompts=all(all(subject.texts) for subject in subjects)),
        real=real, digits=digits, diversities=_diversities(options, digits),
        resize=_resize(options.resize), warnings=warnings,
    )  # fmt: skip


def _real_images(options: Options) -> list[Path]:
    if options.real is None:
        return []
    images = _images_at(options.real)
    if not images:
        raise ConfigError(f"--real {options.real}: no real images there; FID and KID need a folder of at least 2")
    if len(images) < 2:
        raise ConfigError(f"--real {options.real} holds 1 image; FID and KID need at least 2")
    if importlib.util.find_spec("torchmetrics") is None:
        raise ConfigError(INSTALL)
    return images


def _resize(text: str) -> Resize:
    for name in RESIZES:
        if text == name:
            return name
    raise ConfigError(f"--resize must be {' or '.join(RESIZES)}, got {text}")


def _names(sources: Sequence[str]) -> dict[str, str]:
    """Source by name: `NAME=SOURCE`, or the last part of its path; a name that comes again gets a number."""
    named: dict[str, str] = {}
    for text in sources:
        match = re.fullmatch(r"([\w.-]+)=(.+)", text)
        own_name, source = (match[1], match[2]) if match and not Path(text).exists() else (None, text)
        name = own_name or re.sub(r"[^\w.-]", "_", Path(source).expanduser().resolve().name) or "source"
        if own_name is not None and name in named:
            raise ConfigError(f"two sources are named {name}; give each another NAME=SOURCE")
        base, number = name, 2
        while name in named or name in (".", ".."):
            name, number = f"{base}-{number}", number + 1
        named[name] = source
    return named


def _images_at(source: str) -> list[Path] | None:
    """The images of a folder, a glob or a file; None where it can only be a model."""
    path = Path(source).expanduser()
    if source in EMBEDDED:
        return None
    if path.is_dir():
        if RunFolder(path).exists() or (path / "model_index.json").is_file():
            return None
        images = images_of(path)
        if not images:
            raise ConfigError(
                f"{source} is no source: neither a run folder (config.yaml), nor a pipeline folder "
                "(model_index.json), nor a folder with images in it"
            )
        return images
    if path.is_file() and path.suffix in SUFFIXES:  # a model
        return None
    if path.is_file() or any(letter in source for letter in "*?["):
        return find_images([source])
    return None


def _number_of_images(options: Options, places: Mapping[str, list[Path] | None], num_prompts: int) -> int:
    if options.num_images is not None:
        return options.num_images
    counts = [len(images) for images in places.values() if images is not None]
    if len(counts) == len(places):
        return max(counts)
    return num_prompts or NUM_IMAGES


def _model(name: str, source: str, options: Options, count: int, prompts: Sequence[Prompt]) -> Subject:
    texts = tuple(prompt.text for prompt in prompts)
    best = options.best and RunFolder(Path(source)).exists()
    config = options.config if Path(source).is_file() else None
    request = make_request(
        source, best=best, num_images=count, batch_size=options.batch_size, steps=options.steps, eta=options.eta,
        guidance=options.guidance, seed=options.seed, prompt=texts[0] if texts else None, prompts=None, lora_scale=None,
        mix=(), adapter_steps=None, precision=options.precision, out=options.out / name,
        height=options.height, width=options.width, config=config,
    )  # fmt: skip
    if texts:
        request = request.model_copy(update={"prompts": texts})  # all of the set, not its first alone
    return Subject(name, source, request, texts=request.prompts_of(range(count)))


def _images(name: str, source: str, files: Sequence[Path], prompts: Sequence[Prompt]) -> Subject:
    """Images that know their texts keep them, which must be the set's; others are the set's in order."""
    texts = prompts_beside(files)
    if prompts:
        expected = [prompts[image % len(prompts)].text for image in range(len(files))]
        if all(texts) and texts != expected:
            raise ConfigError(f"{source} was made from other texts than --prompts; leave --prompts out, or sample anew")
        texts = expected
    return Subject(name, source, None, files, texts)


def _same_texts(subjects: Sequence[Subject]) -> None:
    """Sources that bring texts of their own must bring the same: else they could not be compared."""
    with_texts = [subject for subject in subjects if subject.texts and all(subject.texts)]
    for subject in with_texts[1:]:
        pairs = zip(subject.texts, with_texts[0].texts, strict=False)  # folders may hold fewer images
        if any(text != other for text, other in pairs):
            raise ConfigError(
                f"{with_texts[0].name} and {subject.name} bring different texts of their own; give --prompts FILE, or "
                "sample both from the same texts"
            )


def _check_places(subjects: Sequence[Subject], real: Sequence[Path]) -> None:
    """Sampling clears its folder first, which must not be one whose images are to be compared."""
    folders = {file.parent.resolve() for subject in subjects for file in subject.files}
    folders |= {file.parent.resolve() for file in real}
    for subject in subjects:
        if subject.request is not None and Path(subject.request.out) in folders:
            raise ConfigError(
                f"{subject.name} would be sampled into {subject.request.out}, whose images are a source; give another "
                "--out, or NAME=SOURCE"
            )


def shows_digits(source: str) -> bool:
    """Whether it is an embedded model, or a run that trained one."""
    run = RunFolder(Path(source))
    return source in EMBEDDED or (run.exists() and run.recipe().model.kind == "embedded")


def _diversities(options: Options, digits: bool) -> list[Diversity]:
    """What was asked for; else in features that are there anyway."""
    for kind in options.diversity:
        if kind not in DIVERSITIES:
            raise ConfigError(f"--diversity must be one of {', '.join(DIVERSITIES)}, got {kind}")
    if options.diversity:
        return [kind for kind in DIVERSITIES if kind in options.diversity]
    return [*(["inception"] if options.real else []), *(["judge"] if digits else [])]


def check_sizes(images: Mapping[str, Sequence[Path]], size: int | None) -> None:
    """Width and height of all images, by name of their source. ConfigError where they differ and no `size` is given."""
    if size is not None:
        return
    first: tuple[str, tuple[int, int]] | None = None
    for name, files in images.items():
        for file in files:
            shape = _size_of(file)
            if first is None:
                first = (name, shape)
            elif shape != first[1]:
                raise ConfigError(
                    f"sizes differ: images of {first[0]} are {_words(first[1])}, {file} of {name} is {_words(shape)}; "
                    "give --size N to bring all to N x N"
                )


def _size_of(file: Path) -> tuple[int, int]:
    try:
        with open_image(file) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{file} is not an image that can be read ({type(error).__name__})") from None


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
