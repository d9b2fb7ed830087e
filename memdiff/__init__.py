"""memdiff: reward fine-tuning of diffusion models on the GPUs people have."""

from memdiff.library import Run, Samples, plan, read_recipe, sample, score, train

__version__ = "0.1.0"
__all__ = ["Run", "Samples", "__version__", "plan", "read_recipe", "sample", "score", "train"]
