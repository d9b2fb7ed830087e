"""Keeps from a person the advice that libraries give while they are imported. Imports none of them."""

import logging
import os


def quiet_imports() -> None:
    """To be called before diffusers, transformers or bitsandbytes is imported. What a user set stays."""
    for name in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{name}_VERBOSITY", "error")
    # On processors with AVX512-BF16 it warns that it could not fetch a 4-bit kernel, which nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
