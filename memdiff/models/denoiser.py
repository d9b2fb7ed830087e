"""A UNet under training: frozen with LoRA, or trained whole; with its window of steps and its state before training.

Shapes: B rows, C channels, H W pixels.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from memdiff.errors import ConfigError
from memdiff.models.lora import inject
from memdiff.models.lora.inject import Steps
from memdiff.models.lora.per_image import per_image_weights
from memdiff.models.low_memory.channels_last import make_channels_last
from memdiff.models.low_memory.feed_forwards import recompute_feed_forwards
from memdiff.models.low_memory.layers import make_lean
from memdiff.models.options import ModelOptions
from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST, cast_and_place, place


class Denoiser:
    """Calls the network with the adapter on or off, as the step and `base` say.

    A graph that recomputes its blocks in the backward does so with the adapter as it stood in the forward.
    """

    def __init__(
        self,
        unet: Any,
        options: ModelOptions,
        *,
        device: torch.device,
    ) -> None:
        adapter = self.adapter = options.adapter
        unet.requires_grad_(adapter is None)
        if adapter is not None:
            inject.inject(unet, adapter, keep_start=options.keep_base)
        make_lean(unet)
        self.unet = unet.eval()
        self._trainable = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        self._twin: torch.nn.Module | None = None
        if adapter is None and options.keep_base:
            # A module of its own without checkpointing: its graph then holds the copied weights themselves.
            self._twin = copy.deepcopy(torch.nn.Module.to(unet, dtype=options.dtype)).requires_grad_(False)
        cast_and_place(unet, options.dtype, device)
        self._channels_last = options.channels_last
        if options.channels_last:
            make_channels_last(unet)
        self.device = device
        self._base_weights: Mapping[str, torch.Tensor] | None = None  # on the device, inside `base` only
        self._windows: dict[str, Steps | None] = {inject.TRAINED: adapter.steps} if adapter else {}
        goes_on = adapter is not None and adapter.path is not None
        self._start: dict[str, Steps | None] = {inject.START: adapter.steps} if adapter and goes_on else {}
        self._start_is_kept = options.keep_base or not goes_on
        self._active = tuple(self._windows)  # adapters that take part now, in the order they are added up
        self._in_base = False
        match options.activation_checkpointing:
            case "blocks":  # diffusers' own: every residual and attention block; eval mode is enough
                unet.enable_gradient_checkpointing(self._checkpoint)
            case "feed_forwards":
                recompute_feed_forwards(unet, self._checkpoint)
            case "none":
                pass
        if options.trained_modules is not None:
            self.train_only(options.trained_modules)

    def train_only(self, modules: Sequence[str]) -> None:
        """Freezes what lies outside these modules, named by their paths. Raises ConfigError where one is not there."""
        assert self.adapter is None, "an adapter's layers are chosen by its targets"
        for path in modules:
            if not any(is_inside(name, [path]) for name in self._trainable):
                raise ConfigError(
                    f"trained_modules: the UNet has no {path}; it has {', '.join(top_modules(self.unet))}"
                )
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(is_inside(name, modules))
        self._trainable = {name: parameter for name, parameter in self._trainable.items() if parameter.requires_grad}
        for module in self.unet.modules():
            if isinstance(module, torch.nn.GroupNorm) and any(p.requires_grad for p in module.parameters()):
                # torch 2.13's CPU kernel crashes where its weight needs a gradient, its input none, and that lies
                # channels last, as attention leaves it.
                module.register_forward_pre_hook(lambda _, inputs: tuple(entry.contiguous() for entry in inputs))

    def __call__(self, x_BCHW: torch.Tensor, timesteps_B: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        """The network's prediction, in the network's dtype; `at_steps` or `base` has set the adapter."""
        if self._channels_last:
            x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        if self._base_weights is not None:
            assert self._twin is not None
            arguments = (x_BCHW, timesteps_B)
            return torch.func.functional_call(self._twin, dict(self._base_weights), arguments, conditioning).sample
        return self.unet(x_BCHW, timesteps_B, **conditioning).sample

    def trains(self, step: int) -> bool:
        """Whether a trainable parameter takes part at this step."""
        return self.adapter is None or inject.TRAINED in acting(self._windows, step)

    def attach(self, sources: Sequence[tuple[Path, float]], *, scale: float, steps: Steps | None, of: int) -> None:
        """Adds saved adapters for sampling, as `inject.attach` has it, in a chain of `of` steps."""
        assert self.adapter is None, "adapters are attached to a network that is not trained"
        self._windows |= inject.attach(self.unet, sources, scale=scale, steps=steps, chain_steps=of)
        self._active = tuple(self._windows)

    def at_steps(self, steps: Sequence[int]) -> None:
        """Turns adapters on or off for rows at these steps, which must agree on them."""
        windows = self._start if self._in_base else self._windows
        names = acting(windows, steps[0])
        assert all(acting(self._windows, step) == acting(self._windows, steps[0]) for step in steps), (
            "rows of one call disagree on the adapter"
        )
        self._turn(names)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, calls are those of the network before training. Raises ConfigError where it was not kept."""
        before = self._active, self._in_base, self._base_weights
        if self._windows and self._start_is_kept:
            self._in_base = True
            self._turn(())  # `at_steps` turns on what training started from
        elif self._twin is None:
            raise ConfigError(
                "the model before training is asked for and was not kept: only a recipe whose method needs it keeps it"
            )
        elif self._base_weights is None:
            with memory_tag("weights"):
                self._base_weights = {
                    name: place(weight, self.device)
                    for name, weight in (*self._twin.named_parameters(), *self._twin.named_buffers())
                }
        try:
            yield
        finally:
            active, self._in_base, self._base_weights = before
            self._turn(active)

    def _turn(self, names: tuple[str, ...]) -> None:
        if names != self._active:
            inject.set_active(self.unet, names)
            self._active = names

    @contextmanager
    def _turned(self, names: tuple[str, ...]) -> Iterator[None]:
        before = self._active
        self._turn(names)
        try:
            yield
        finally:
            self._turn(before)

    def _checkpoint(self, block: Callable[..., Any], *arguments: Any) -> Any:
        names = self._active
        return checkpoint(
            block,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is random in eval mode
            context_fn=lambda: (nullcontext(), self._turned(names)),
        )

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """All of the UNet, or the LoRA."""
        return self._trainable

    @contextmanager
    def per_image_weights(self, images: int) -> Iterator[Sequence[torch.Tensor]]:
        """Inside, each of `images` has trained weights of its own, which are yielded; with one the parameters."""
        if images == 1:
            yield list(self._trainable.values())
            return
        assert self.adapter is not None, "only an adapter's weights can be each image's own"
        own = {
            name: parameter.detach().expand(images, *parameter.shape).requires_grad_()
            for name, parameter in self._trainable.items()
        }
        with per_image_weights(self.unet, own):
            yield list(own.values())

    def copy_with(self, weights: Mapping[str, torch.Tensor]) -> Any:
        """The UNet on the host in fp32 with `weights` for its trained parameters, the adapter on."""
        twin = copy.deepcopy(self.unet, {id(self): self})  # checkpoints in it hold this Denoiser: not to be copied too
        twin.disable_gradient_checkpointing()
        if self.adapter is not None:
            inject.set_active(twin, [inject.TRAINED])
        torch.nn.Module.to(twin, device=HOST, dtype=torch.float32)
        parameters = dict(twin.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight)
        return twin


def acting(windows: Mapping[str, Steps | None], step: int) -> tuple[str, ...]:
    """Adapters whose window of steps holds this step, in their order."""
    return tuple(name for name, window in windows.items() if window is None or window[0] <= step < window[1])


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of these modules."""
    return any(name.startswith(f"{path}.") for path in modules)


def top_modules(unet: torch.nn.Module) -> list[str]:
    """What a UNet is made of: conv_in, time_embedding, down_blocks.0, ..., mid_block, up_blocks.0, ..."""
    names = []
    for name, child in unet.named_children():
        if isinstance(child, torch.nn.ModuleList):
            names += [f"{name}.{number}" for number in range(len(child))]
        elif any(True for _ in child.parameters()):
            names.append(name)
    return names
