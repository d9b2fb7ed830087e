"""What `memdiff sample` was asked for, checked. No torch."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from pydantic import Field, ValidationError

from memdiff.errors import ConfigError
from memdiff.models.config import EmbeddedConfig, ModelConfig, Precision, Step, takes_prompts
from memdiff.models.lora.paths import find_adapter
from memdiff.models.sampler_config import SamplerConfig
from memdiff.recipe.prompt_files import check_encodable, read_prompt_file
from memdiff.recipe.prompts import PromptSet
from memdiff.runtime.image_files import sample_settings
from memdiff.runtime.section import Float, Int, Section
from memdiff.sampling.source import Source, locate

BATCHES = {"embedded": 32, "ddpm": 32, "stable_diffusion": 8, "sdxl": 2}  # images denoised at once, where not given


class MixedAdapter(Section):
    """One adapter of those that are added up."""

    file: str
    weight: Float = Field(ge=-1e6, le=1e6)


class SampleRequest(Section):
    """Exactly `num_images` images from a model with adapters. Written beside the images as settings.json."""

    source: str = Field(description="As it was given.")
    model: ModelConfig = Field(description="What is loaded, without adapters.")
    adapters: tuple[MixedAdapter, ...] = Field(description="dW = lora_scale sum_i weight_i dW_i.")
    lora_scale: Float = Field(ge=-1e6, le=1e6)
    adapter_steps: tuple[Step, Step] | None = Field(description="[start, end). None: those they were trained in.")
    prompts: tuple[str, ...] = Field(description="Image i is made from number i mod P of these P. Empty: no texts.")
    num_images: Int = Field(ge=1, le=10**6)
    batch_size: Int = Field(ge=1, le=10**6)
    sampler: SamplerConfig
    seed: Int = Field(ge=0, lt=2**63)
    precision: Precision
    out: str

    def prompts_of(self, images: Sequence[int]) -> list[str]:
        """One text an image; the empty one where the model takes none."""
        return [self.prompts[image % len(self.prompts)] if self.prompts else "" for image in images]


def make_request(
    source: str,
    *,
    best: bool,
    num_images: int,
    batch_size: int | None,
    steps: int | None,
    eta: float | None,
    guidance: float | None,
    seed: int,
    prompt: str | None,
    prompts: Path | None,
    lora_scale: float | None,
    mix: Sequence[str],
    adapter_steps: str | None,
    precision: str,
    out: Path | None,
    height: int | None = None,
    width: int | None = None,
    config: str | None = None,
) -> SampleRequest:
    """Fills what was not given from the run's recipe, or from the sampler's defaults. Raises ConfigError."""
    texts = _texts(prompt, prompts)
    mixed = [_mixed(word) for word in mix]
    window = None if adapter_steps is None else _window(adapter_steps)
    resolved_source = locate(source, best=best, own_adapter=not mixed, config=config)
    if resolved_source.adapter is not None:
        mixed = [(resolved_source.adapter, 1.0)]
    if not mixed and (lora_scale is not None or window is not None):
        raise _no_adapter("--adapter-steps" if lora_scale is None else "--lora-scale", source, resolved_source)
    if not takes_prompts(resolved_source.model) and guidance is not None:
        raise ConfigError(f"--guidance needs a text-to-image model; {source} takes no prompts")
    asked = {"steps": steps, "eta": eta, "guidance": guidance}
    overrides = {key: value for key, value in asked.items() if value is not None}
    with _mistakes_as_one_line():
        request = SampleRequest(
            source=source,
            model=_sized(resolved_source.model, height, width, source),
            adapters=tuple(MixedAdapter(file=str(file.resolve()), weight=weight) for file, weight in mixed),
            lora_scale=1.0 if lora_scale is None else lora_scale,
            adapter_steps=window,
            prompts=_prompts_for(resolved_source, texts, source),
            num_images=num_images,
            batch_size=min(batch_size or BATCHES[resolved_source.model.kind], num_images),
            sampler=SamplerConfig.model_validate(resolved_source.sampler.model_dump() | overrides),
            seed=seed,
            precision=precision,  # pyright: ignore[reportArgumentType]
            out=str((out or resolved_source.out).resolve()),
        )
    if window is not None and window[1] > request.sampler.steps:
        raise ConfigError(
            f"--adapter-steps must end at the chain's {request.sampler.steps} steps or before, got {adapter_steps}"
        )
    return request if out is not None else request.model_copy(update={"out": str(_folder_of_its_own(request))})


def replaces_others(request: SampleRequest, folder: Path) -> bool:
    """Whether the folder holds images that were sampled with other settings."""
    settings = sample_settings(folder)
    if settings is None:
        return False
    left_out = {"out", "batch_size"}  # which change no image
    before = {key: value for key, value in settings.items() if key not in left_out}
    return before != request.model_dump(mode="json", exclude=left_out)


def _folder_of_its_own(request: SampleRequest) -> Path:
    """The default folder, or the first of `samples_2`, `samples_3`, ... beside it that holds no other images."""
    default = Path(request.out)
    folders = (default.with_name(f"{default.name}_{number}") for number in count(2))
    return next(folder for folder in chain((default,), folders) if not replaces_others(request, folder))


def _texts(prompt: str | None, prompts: Path | None) -> tuple[str, ...]:
    """What was asked for: one text, those of a file, or none."""
    if prompt is not None and prompts is not None:
        raise ConfigError("--prompt and --prompts can't be given together; put the text into the file")
    if prompts is not None:
        return read_prompt_file(prompts)
    if prompt is None:
        return ()
    check_encodable(prompt, "--prompt")
    return (prompt,)


@contextmanager
def _mistakes_as_one_line() -> Iterator[None]:
    """A value that a section does not take is the person's mistake: ConfigError."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(key) for key in first["loc"])
        raise ConfigError(f"{name}: {first['msg']}, got {first['input']!r}") from None


def _sized(model: ModelConfig, height: int | None, width: int | None, source: str) -> ModelConfig:
    """The model with images of this size; None leaves a side as it is. Raises ConfigError and ValidationError."""
    if height is None and width is None:
        return model
    if isinstance(model, EmbeddedConfig):
        raise ConfigError(f"--height and --width: {source} makes images of one size alone; leave them out")
    before = model.size
    changed = {"resolution": None, "height": height or before[0], "width": width or before[1]}
    return type(model).model_validate(model.model_dump() | changed)


def _prompts_for(resolved_source: Source, texts: tuple[str, ...], source: str) -> tuple[str, ...]:
    if not takes_prompts(resolved_source.model):
        if texts:
            raise ConfigError(f"{source} makes images without prompts; leave --prompt and --prompts out")
        return ()
    if texts:
        return texts
    if resolved_source.prompts is None:
        raise ConfigError(f"{source} makes images from texts; give --prompt TEXT or --prompts FILE")
    return PromptSet.read(resolved_source.prompts).texts


def _mixed(word: str) -> tuple[Path, float]:
    """`DIR=W`: an adapter's file and its weight."""
    path, equals, number = word.rpartition("=")
    if not equals or not path:
        raise ConfigError(f"--mix must be DIR=W, a folder and its weight, such as --mix runs/a=0.5; got {word}")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ConfigError(f"--mix {word}: the weight must be a number, such as 0.5, got {number!r}")
    return find_adapter(Path(path).expanduser()), weight


def _window(text: str) -> tuple[int, int]:
    """`START:END`, as a range of steps."""
    match = re.fullmatch(r"(\d+):(\d+)", text.strip())
    window = (int(match[1]), int(match[2])) if match else (0, 0)
    if not window[0] < window[1]:
        raise ConfigError(f"--adapter-steps must be START:END with START < END, such as 0:25, got {text}")
    return window


def _no_adapter(option: str, source: str, resolved_source: Source) -> ConfigError:
    if resolved_source.trained_in_full:
        return ConfigError(f"{option}: {source} was trained in full and has no adapter; only runs with LoRA have one")
    embedded = isinstance(resolved_source.model, EmbeddedConfig)
    what = "an embedded model" if embedded else "a pipeline"
    return ConfigError(f"{option} needs an adapter, and {source} is {what} without one; add --mix DIR=W")
