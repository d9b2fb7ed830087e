"""Keeps the libraries' own bars and advice out of what a person reads."""

import diffusers
import transformers


def quiet_libraries() -> None:
    """diffusers and transformers speak of errors only; memdiff shows its own progress."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
