"""memdiff: reward fine-tuning of diffusion models on the GPUs people have."""

from memdiff.library import Evaluated, Run, Samples, evaluate, plan, read_recipe, sample, score, train

__version__ = "0.1.0"
__all__ = ["Evaluated", "Run", "Samples", "__version__", "evaluate", "plan", "read_recipe", "sample", "score", "train"]
