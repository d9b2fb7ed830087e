"""The operator cache: operators on fake tensors, answered from memory once one of the same shapes has run.

What a fake operator returns follows from the operator and from its arguments' metadata. torch has such a cache
itself, with a key that allows for symbolic sizes, sparse layouts and more; a plan has dense tensors of fixed sizes
alone, for which a smaller key will do, at a third of the time per operator. Whatever is out of the ordinary is not
cached.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
_FAKE: Any = torch._C._TorchDispatchModeKey.FAKE  # pyright: ignore[reportAttributeAccessIssue]
_SUBCLASS: Any = torch.Tensor._make_subclass  # pyright: ignore[reportAttributeAccessIssue]
_UNKNOWN = object()
_AS_THEY_ARE = (bool, torch.dtype)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class _UnusualError(Exception):
    """An argument that no key is made of."""


@dataclass(frozen=True)
class _Made:
    """One returned tensor: its metadata, and the number of the argument whose storage it has."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    storage_of: int | None  # None: its own
    itself: bool  # the argument, changed in place


@dataclass(frozen=True)
class _Answer:
    """What an operator returns: one tensor, or several as a tuple or a list."""

    made: tuple[Any, ...]  # a _Made, or as it is: None for a result that wasn't asked for, a dtype, a yes or no
    sequence: type | None


class OperatorCache:
    """Runs operators for one fake mode. What they return is cached for the whole process."""

    _answers: ClassVar[dict[int, tuple[Any, dict[tuple[Any, ...], _Answer | None]]]] = {}
    """Of each operator, by its id: torch hashes an operator in Python. It stands beside its answers, to keep its id."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._attributes: dict[torch.device, dict[str, Any]] = {}  # of a fake tensor on each device
        mode.cache_enabled = False

    def __call__(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns."""
        tensors: list[FakeTensor] = []
        key: list[Any] = []
        try:
            _describe(args, key, tensors)
            for name, value in kwargs.items():
                key.append(name)
                _describe((value,), key, tensors)
            if not tensors and torch._C._get_dispatch_mode(_FAKE) is not self._mode:
                raise _UnusualError  # torch has set the mode aside: what is made here is real
        except _UnusualError:
            return func(*args, **kwargs)
        _, answers = self._answers.get(id(func)) or self._answers.setdefault(id(func), (func, {}))
        whole = tuple(key)
        answer = answers.get(whole, _UNKNOWN)
        if isinstance(answer, _Answer):
            return self._make(answer, tensors)
        result = func(*args, **kwargs)
        if answer is _UNKNOWN:
            answers[whole] = _answer(func, whole, args, kwargs, tensors, result)
        return result

    def _make(self, answer: _Answer, tensors: Sequence[FakeTensor]) -> Any:
        results = [self._result(made, tensors) if isinstance(made, _Made) else made for made in answer.made]
        return results[0] if answer.sequence is None else answer.sequence(results)

    def _result(self, made: _Made, tensors: Sequence[FakeTensor]) -> FakeTensor:
        if made.itself:
            return tensors[made.storage_of or 0]
        with no_dispatch():
            if made.storage_of is None:
                tensor = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
            else:
                tensor = torch.empty((0,), dtype=made.dtype, device="meta")
                storage = tensors[made.storage_of].untyped_storage()
                tensor.set_(storage, made.offset, made.shape, made.stride)  # pyright: ignore[reportArgumentType]
            return self._fake(tensor, made.device)

    def _fake(self, tensor: torch.Tensor, device: torch.device) -> FakeTensor:
        """`FakeTensor(mode, tensor, device)`, whose checks and some fifteen attributes take most of a cached answer.

        They are the same for all on a device that have no constant: they are copied from the first.
        """
        attributes = self._attributes.get(device)
        if attributes is None:
            first = FakeTensor(self._mode, tensor, device)
            self._attributes[device] = dict(vars(first))
            return first
        fake = _SUBCLASS(FakeTensor, tensor, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(fake)  # pyright: ignore[reportAttributeAccessIssue]
        vars(fake).update(attributes)
        return fake


def _describe(values: Sequence[Any], key: list[Any], tensors: list[FakeTensor]) -> None:
    """Adds what a result follows from. Raises _UnusualError."""
    for value in values:
        kind = type(value)
        if isinstance(value, FakeTensor):
            if value.constant is not None:
                raise _UnusualError
            tensors.append(value)
            key += (value.shape, value.stride(), value.storage_offset())
            key += (value.dtype, value.fake_device, value.requires_grad)
        elif kind in _PLAIN:
            key += (kind, value)
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            _describe(value, key, tensors)
        elif kind is torch.Size:
            key.append(value)
        else:
            raise _UnusualError


def _answer(
    func: Any, key: tuple[Any, ...], args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[FakeTensor],
    result: Any,
) -> _Answer | None:  # fmt: skip
    """None where the next call has to run as well."""
    if _DATA & set(func.tags):
        return None
    sequence = type(result) if type(result) in (tuple, list) else None
    results = result if sequence else (result,)
    storages = {one.untyped_storage()._cdata: number for number, one in reversed(list(enumerate(tensors)))}
    numbers = {id(one): number for number, one in enumerate(tensors)}
    made = [each if isinstance(each, _AS_THEY_ARE) else _made(each, storages, numbers) for each in results]
    if any(one is None and each is not None for one, each in zip(made, results, strict=True)):
        return None
    if func._schema.is_mutable and not all(isinstance(one, _Made) and one.itself for one in made):
        return None
    after: list[Any] = []
    _describe(args, after, [])
    for name, value in kwargs.items():
        after.append(name)
        _describe((value,), after, [])
    return _Answer(tuple(made), sequence) if tuple(after) == key else None


def _made(result: Any, storages: Mapping[int, int], numbers: Mapping[int, int]) -> _Made | None:
    """None where it can't be made again from its metadata.

    `storages` are the arguments' numbers by their storages, `numbers` by themselves.
    """
    if not isinstance(result, FakeTensor) or result.constant is not None:
        return None
    if result.dtype.is_complex or result.layout is not torch.strided:
        return None
    shape, stride, offset = tuple(result.shape), result.stride(), int(result.storage_offset())
    storage = result.untyped_storage()
    itself = id(result) in numbers
    whose = numbers[id(result)] if itself else storages.get(storage._cdata)
    if whose is None:
        reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if result.numel() else 0
        if offset or storage.nbytes() != reach * result.dtype.itemsize:
            return None
    return _Made(shape, stride, offset, result.dtype, result.fake_device, whose, itself)
