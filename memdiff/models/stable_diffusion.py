"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, whose last hidden state conditions the UNet."""

from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline

from memdiff.models.latent import LatentPolicy


class StableDiffusionPolicy(LatentPolicy):
    """Conditions the UNet on the last hidden state of one CLIP text encoder."""

    penultimate: ClassVar[bool] = False
    pipeline_class: ClassVar[Any] = StableDiffusionPipeline

    def pipeline_options(self) -> dict[str, Any]:
        """No safety checker: it is a network of its own, and not part of what was trained."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
