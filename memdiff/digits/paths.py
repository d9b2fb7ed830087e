"""Where the embedded weights lie. Imports no torch, so that a recipe can name them cheaply."""

from pathlib import Path

DIGITS_DDPM: Path = Path(__file__).parent / "digits_ddpm"
"""A diffusers `DDPMPipeline` folder: unconditional handwritten digits, 16 x 16, one channel."""

DIGITS_TEXT: Path = Path(__file__).parent / "digits_text"
"""A diffusers `StableDiffusionPipeline` folder: handwritten digits from prompts."""

CLASSIFIERS: Path = Path(__file__).parent / "classifiers"
"""`reward.safetensors` and `judge.safetensors`: the two digit classifiers."""
