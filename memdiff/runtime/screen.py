"""The console that progress is shown on: with bars on a terminal, in lines alone elsewhere. No torch."""

import os

from rich.console import Console

KERNEL = "JPY_PARENT_PID"  # what Jupyter, Colab and Kaggle set for kernels, and these hand on to what `!` starts


def screen(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Where bars can be redrawn, `is_terminal` says so.

    A notebook can't: what `!` starts has a terminal by its own account, and a cell shows each redrawing one below the
    other. rich's own way in a kernel needs ipywidgets, and makes a block of each line.
    """
    plain = False if KERNEL in os.environ else None
    return Console(stderr=stderr, quiet=quiet, highlight=False, force_jupyter=False, force_terminal=plain)
