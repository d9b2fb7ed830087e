"""A GPU that isn't there: fake tensors on a device of their own, on which training code runs without data.

`GPU` is cpu:0, which no real tensor ever stands on, and `HOST` plain cpu: torch treats them as two devices, so moves
between them are operators that a ledger sees, and mixing them is an error as it is on a card; and both take the CPU's
fused attention, which keeps for the backward what a GPU's does (meta tensors would take the unfused one, and fake cuda
aborts in torch's CPU builds).

Numbers that code reads back from a device (finite or not, a metric, a scale) don't exist here. They are answered with 1
and True, and a search for what is broken with nothing: no memory depends on them in a run that goes well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from memdiff.chain.noise import Noise, Stream
from memdiff.planner.operator_cache import OperatorCache
from memdiff.runtime.placement import put_in_place

GPU = torch.device("cpu", 0)
_DEVICE = torch.ops.prim.device.default  # the commonest operator
_ANSWERS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


@contextmanager
def fake_gpu() -> Iterator["Answers"]:
    """Inside, every tensor is fake, on the host unless it is made on or moved to `GPU`; modules can be moved."""
    # Nothing is to be filled, and trunc_normal_ asks its numbers whether it is done.
    with no_initialisation(), _fake_gpu() as answers:
        yield answers


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Inside, torch's initialisers leave what they are given as it is."""
    with ExitStack() as replaced:
        for name in _INITIALISERS:
            replaced.enter_context(_in_place_of(torch.nn.init, name, _leave_as_it_is))
        yield


_INITIALISERS = (
    "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_", "_no_grad_uniform_",
    "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_",
)  # fmt: skip


def _leave_as_it_is(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return tensor


@contextmanager
def _fake_gpu() -> Iterator["Answers"]:
    with (
        # torch's own swaps the objects of fake parameters, which it refuses once they have been used.
        _in_place_of(torch.nn.Module, "_apply", _apply),
        # torch's own make them on the plain cpu.
        _in_place_of(torch, "tensor", _tensor),
        _in_place_of(FakeTensor, "new_tensor", _new_tensor),
        # torch's own looks for the data.
        _in_place_of(FakeTensor, "__deepcopy__", _deep_copy),
        FakeTensorMode() as mode,
        Answers(OperatorCache(mode)) as answers,
    ):
        yield answers


@contextmanager
def _in_place_of(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


_torch_tensor = torch.tensor


def _tensor(data: Any, *, device: torch.device | None = None, **options: Any) -> torch.Tensor:
    made = _torch_tensor(data, **options)
    return made if device is None else made.to(device)


def _deep_copy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    if id(tensor) not in memo:
        twin = tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    return memo[id(tensor)]


def _new_tensor(like: torch.Tensor, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return _tensor(data, dtype=dtype or like.dtype, device=like.device)


def _apply(module: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """torch.nn.Module._apply for fake parameters, which stay the same objects as real ones do."""
    if recurse:
        for child in module.children():
            child._apply(fn)
    for parameter in module._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                moved: Any = fn(parameter)
            if moved is not parameter:
                put_in_place(parameter, moved)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


class Answers(TorchDispatchMode):
    """Answers what reads numbers, and runs the rest on fake tensors."""

    def __init__(self, cache: OperatorCache) -> None:
        super().__init__()
        self._run = cache

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and torch's guard against it takes as long as an operator does."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, or answers in its place."""
        return self.answer(func, args, kwargs or {})

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns: also for a mode above this one, which saves a dispatch for each."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func in _ANSWERS and isinstance(args[0], FakeTensor) and args[0].constant is None:
            dtype = args[0].dtype
            return True if dtype == torch.bool or func is torch.ops.aten.is_nonzero.default else dtype_one(dtype)
        if func is torch.ops.aten.nonzero.default:
            return torch.empty(0, args[0].ndim, dtype=torch.int64, device=args[0].device)
        result = self._run(func, args, kwargs)
        if kwargs.get("device") == GPU and isinstance(result, FakeTensor) and result.constant is not None:
            # A number that torch knows: it would go on computing with it, really, and on the plain cpu.
            result.constant, result.fake_device = None, GPU
        return result


def dtype_one(dtype: torch.dtype) -> float | int:
    """1 as Python has it."""
    return 1.0 if dtype.is_floating_point else 1


class BlankNoise(Noise):
    """Noise of the right shape that is never filled with numbers."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(seed=0, stream=Stream.PROBE, round_number=0, shape=shape)

    def _draw(self, images: Sequence[int], counter: int) -> torch.Tensor:
        return torch.empty(len(images), *self.shape)
