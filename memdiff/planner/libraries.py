"""The libraries that short rounds take, loaded once for all forks, without those that no plan uses.

bitsandbytes and SciPy are two of six seconds: transformers, diffusers and peft load them where they are installed, for
quantised weights, losses and schedulers that no recipe has.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from memdiff.recipe.recipe import Recipe

UNUSED = ("bitsandbytes", "scipy")


def load_libraries(recipe: Recipe, *, scored: bool, alone: bool) -> None:
    """All that rounds of this recipe import; `scored`: its rewards as well.

    `alone`: this process plans and does nothing else, so that libraries may take `UNUSED` for not installed.
    """
    with hidden(UNUSED if alone else ()):
        from memdiff.models.quiet import quiet_libraries

        quiet_libraries()
        from memdiff.planner.dry_run import import_all

        import_all(recipe, scored=scored)


@contextmanager
def hidden(packages: Sequence[str]) -> Iterator[None]:
    """Inside, those that are not loaded yet can't be, and count as not installed."""
    absent = [package for package in packages if package not in sys.modules]
    for package in absent:
        sys.modules[package] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
