"""Independent calls side by side, in forks of this process: libraries are loaded already. No torch."""

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from memdiff.errors import MemdiffError

T = TypeVar("T")


def side_by_side(call: Callable[..., T], tasks: Sequence[tuple[Any, ...]], processes: int) -> list[T]:
    """`call(*task)` of each, in order, at most `processes` at a time. What one raises is raised here."""
    if processes <= 1 or len(tasks) <= 1:
        return [call(*task) for task in tasks]
    context, results = multiprocessing.get_context("fork"), []
    for start in range(0, len(tasks), processes):
        started = []
        for task in tasks[start : start + processes]:
            mine, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_answer, args=(theirs, call, task), daemon=True)
            child.start()
            theirs.close()
            started.append((child, mine))
        results += [_ask(child, pipe) for child, pipe in started]
    return results


def _answer(pipe: Connection, call: Callable[..., Any], task: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, call(*task)))
    except MemdiffError as error:
        pipe.send((False, error))
    except BaseException:
        pipe.send((False, RuntimeError(traceback.format_exc())))


def _ask(child: Any, pipe: Connection) -> Any:
    try:
        done, answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"a process of the plan ended with exit code {child.exitcode}") from None
    child.join()
    if not done:
        raise answer
    return answer
