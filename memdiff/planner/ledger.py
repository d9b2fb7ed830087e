"""Live bytes of running code, counted storage by storage, on real tensors or fake ones.

A storage counts from the operator that first shows it until nothing refers to it any more. Views share a storage and
count once; what autograd keeps for the backward keeps its storage alive and counts. Memory that an operator takes and
gives back inside itself is not seen, nor is an allocator's rounding.

Every storage has a tag (memdiff.runtime.memory_tags). Code says it with `memory_tag`; what a backward makes belongs to
the tag of the operator that is being differentiated, and to that operator's module: autograd's nodes are numbered, and
the number that an operator's node gets is noted in the forward.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _current_autograd_node  # pyright: ignore[reportAttributeAccessIssue]
from torch._C._autograd import _get_sequence_nr  # pyright: ignore[reportAttributeAccessIssue]
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from memdiff.memory.peak import Peak
from memdiff.planner.flops import Formula, formula_of
from memdiff.runtime.memory_tags import MEMORY_TAGS, MemoryTag, current_tag

_DEVICE = torch.ops.prim.device.default  # what `tensor.device` dispatches to on fake tensors: the commonest operator
_RESIZING = {torch.ops.aten.resize_.default, torch.ops.aten.set_.source_Storage_storage_offset}
_VIEWS_UNSAID = {torch.ops.aten._unsafe_view.default}  # views whose schema doesn't say so


Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Event:
    """One storage made (positive) or gone (negative)."""

    bytes: int
    category: MemoryTag
    module: str
    phase: str


class Ledger(TorchDispatchMode):
    """Inside `with Ledger() as ledger:` every storage that operators make is entered, and struck off when it dies.

    `live_bytes` are those entered and alive, `peak_bytes` their maximum. What existed before and is only read does not
    count; `enter` counts it. `device` restricts both to it: to its type, or to one device where it has an index.
    `networks` are the roots of module paths, by name; without them no path is noted. `events` records every change.
    `run` runs an operator, in the place of calling it.
    """

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        networks: Mapping[str, torch.nn.Module] | None = None,
        events: bool = False,
        run: Run | None = None,
    ) -> None:
        super().__init__()
        self._run = run or _call
        self.live_bytes = 0
        self.live: dict[MemoryTag, int] = dict.fromkeys(MEMORY_TAGS, 0)
        self.peaks: dict[str, Peak] = {}  # by phase; "" outside all phases
        self.flops: dict[str, int] = {}  # by phase, a multiplication and an addition being two
        self.recomputed_flops: dict[str, int] = {}  # those of them that checkpoints spend on running a forward again
        self.events: list[Event] | None = [] if events else None
        self._device = device
        self._phase = ""
        self._bytes: dict[
            int, tuple[int, MemoryTag, str]
        ] = {}  # of each live storage, by the address of its C++ object
        # weakref.finalize runs when that object dies: torch keeps a storage's Python object as long as itself.
        self._origin: dict[int, tuple[MemoryTag | None, str]] = {}  # category and module, by the number of a node
        self._paths = {module: path for name, root in (networks or {}).items() for module, path in _paths(name, root)}
        self._running: list[str] = []  # paths of the modules whose forward runs, outermost first
        self._hooks: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and torch's guard against it takes as long as an operator does."""
        return False

    @property
    def peak_bytes(self) -> int:
        """The largest peak of any phase."""
        return max((peak.bytes for peak in self.peaks.values()), default=0)

    @property
    def peak(self) -> Peak:
        """The largest peak of any phase."""
        return max(self.peaks.values(), key=lambda peak: peak.bytes, default=Peak())

    def enter(self, tensors: Iterable[torch.Tensor], category: MemoryTag | None = None) -> None:
        """Counts tensors that were made outside, weights for example, from here until they die.

        Where `category` is given, a storage that is counted already goes over to it.
        """
        for tensor in tensors:
            self._note(tensor, category or current_tag() or "activations", "")
            known = self._bytes.get(_key(tensor))
            if known is not None and category is not None and known[1] != category:
                self._replace(_key(tensor), (known[0], category, known[2]))

    def reset_peak(self) -> None:
        """Forgets the peaks of all phases: they count from here on."""
        self.peaks = {self._phase: Peak(self.live_bytes, dict(self.live))}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Peaks and FLOPs inside belong to `name`. What lives at entry counts in the phase's peak."""
        before, self._phase = self._phase, name
        self._rise()
        try:
            yield
        finally:
            self._phase = before

    def __enter__(self) -> "Ledger":
        """Counts from here on."""
        if self._paths:
            self._hooks = [
                register_module_forward_pre_hook(self._begin),
                register_module_forward_hook(self._end, always_call=True),
            ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        """What is alive goes on being struck off as it dies."""
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator and enters what it made."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        category, module, again = self._whose()
        result = self._run(func, args, kwargs)
        operator = _operators.get(id(func)) or _read(func)
        if operator.resizes:
            self._note(args[0], category, module)
        elif not operator.aliases:
            # A view or an in-place result has its argument's storage, which was entered when it was made, or not.
            for tensor in (result,) if isinstance(result, torch.Tensor) else tree_iter(result):
                if isinstance(tensor, torch.Tensor):
                    self._note(tensor, category, module)
        if operator.flops is not None:
            flops = operator.flops(args, kwargs, result)
            self.flops[self._phase] = self.flops.get(self._phase, 0) + flops
            if again:
                self.recomputed_flops[self._phase] = self.recomputed_flops.get(self._phase, 0) + flops
        return result

    def _whose(self) -> tuple[MemoryTag, str, bool]:
        """Category and module of the operator that runs, and whether a checkpoint runs it again."""
        said, module = current_tag(), self._running[-1] if self._running else ""
        node = _current_autograd_node()
        again = False
        if node is not None:
            category, path = self._origin.get(node._sequence_nr(), (None, ""))
            said, module = said or category, module or path
            again = torch.is_grad_enabled()
        if torch.is_grad_enabled():
            # The operator's node was numbered just before; an operator without a node leaves its forerunner's.
            self._origin.setdefault(_get_sequence_nr() - 1, (said, module))
        return said or "activations", module, again

    def _note(self, tensor: torch.Tensor, category: MemoryTag, module: str) -> None:
        if self._device is not None and not _is_on(tensor, self._device):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._bytes.get(key)
        if known is None:
            weakref.finalize(storage, self._strike, key)
            self._replace(key, (size, category, module))
        elif known[0] != size:  # resized in place
            self._replace(key, (size, *known[1:]))

    def _replace(self, key: int, entry: tuple[int, MemoryTag, str]) -> None:
        self._change(self._bytes.get(key), -1)
        self._bytes[key] = entry
        self._change(entry, 1)

    def _strike(self, key: int) -> None:
        self._change(self._bytes.pop(key), -1)

    def _change(self, entry: tuple[int, MemoryTag, str] | None, sign: int) -> None:
        if entry is None:
            return
        size, category, module = entry
        self.live_bytes += sign * size
        self.live[category] += sign * size
        if self.events is not None:
            self.events.append(Event(sign * size, category, module, self._phase))
        if sign > 0:
            self._rise(module)

    def _rise(self, module: str = "") -> None:
        peak = self.peaks.get(self._phase)
        if peak is None or self.live_bytes > peak.bytes:
            self.peaks[self._phase] = Peak(self.live_bytes, dict(self.live), module)

    def _begin(self, module: torch.nn.Module, _: Any) -> None:
        path = self._paths.get(module)
        if path is not None:
            self._running.append(path)

    def _end(self, module: torch.nn.Module, *_: Any) -> None:
        if module in self._paths:
            self._running.pop()


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


@dataclass(frozen=True)
class _Operator:
    """What is known of an operator before it runs."""

    func: Any
    resizes: bool
    aliases: bool  # what it returns has the storage of one of its arguments, as its schema says
    flops: Formula | None


_operators: dict[int, _Operator] = {}  # by their ids: torch hashes an operator in Python, several times a call


def _read(func: Any) -> _Operator:
    aliases = func in _VIEWS_UNSAID or any(returned.alias_info is not None for returned in func._schema.returns)
    return _operators.setdefault(id(func), _Operator(func, func in _RESIZING, aliases, formula_of(func)))


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Fake tensors may stand on a device with an index that real ones don't have: cpu:0, the plan's GPU."""
    tensor_device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
    return tensor_device == device if device.index is not None else tensor_device.type == device.type


def _paths(name: str, root: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    for path, module in root.named_modules():
        yield module, f"{name}.{path}" if path else name
