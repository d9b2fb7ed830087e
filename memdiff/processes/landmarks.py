"""Where this process is in its work, told whenever it gets on. No torch.

Whatever takes time passes landmarks: a step, a piece, a chunk of rewards, a save. The watchdog takes them for signs of
life, a request to stop is looked at there, and the tests' faults strike there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Observer = Callable[[str], None]

_observers: list[Observer] = []
_displays: list[Observer] = []
_places = ["starting"]  # the innermost last


def observe(observer: Observer) -> None:
    """Calls it with the place at every landmark from here on. It may raise."""
    _observers.append(observer)


def show(display: Observer) -> None:
    """Calls it with the place at every landmark, and where one place is left for the one around it."""
    _displays.append(display)


def passed() -> None:
    """This process has got on, at the place where it is."""
    for display in _displays:
        display(_places[-1])
    for observer in _observers:
        observer(_places[-1])


@contextmanager
def at(place: str) -> Iterator[None]:
    """While it lasts this process is at `place`: a word or two, which people read."""
    _places.append(place)
    try:
        passed()
        yield
    finally:
        _places.pop()
        for display in _displays:
            display(_places[-1])


def go_to(place: str) -> None:
    """From here on this process is at `place`."""
    _places[-1] = place
    passed()
