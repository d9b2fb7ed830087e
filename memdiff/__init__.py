"""memdiff: reward fine-tuning of diffusion models on the GPUs people have."""

__version__ = "0.1.0"
