"""Recipe parts of the reward families with public weights, and of JPEG. No torch."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from memdiff.models.config import resolve_source
from memdiff.rewards.part_config import NetworkPart, Part, TextPart, resolve_weights
from memdiff.runtime.section import Float, Int

FOLDER_OR_HUB_ID = "A folder, or a hub id."


class ImageRewardConfig(TextPart):
    """ImageReward (Xu et al. 2023): how well people would like an image for its prompt; about -2.5 to 2.5."""

    kind: Literal["image_reward"]
    path: str = Field(
        default="THUDM/ImageReward", min_length=1, description="A hub id, a folder with ImageReward.pt, or the file."
    )

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_weights(path, info.context)


class ClipTextPart(TextPart):
    """A text part on CLIP, which takes its tokens from a tokenizer of its own."""

    tokenizer: str | None = Field(
        default=None,
        description="A folder or hub id with a CLIP tokenizer. None: the folder's own, or the kind's usual.",
    )

    @field_validator("tokenizer")
    @classmethod
    def _tokenizer_folder_or_hub_id(cls, tokenizer: str | None, info: ValidationInfo) -> str | None:
        return None if tokenizer is None else resolve_source(tokenizer, info.context)


class AestheticConfig(NetworkPart):
    """LAION's aesthetic predictor v2 (sac+logos+ava1-l14-linearMSE) on CLIP ViT-L/14: about 1 to 10."""

    kind: Literal["aesthetic"]
    path: str = Field(default="openai/clip-vit-large-patch14", min_length=1, description=FOLDER_OR_HUB_ID)
    head: str = Field(
        default="trl-lib/ddpo-aesthetic-predictor", min_length=1, description="A weight file, a folder or a hub id."
    )
    head_file: str = Field(default="aesthetic-model.pth", min_length=1, description="In that folder or hub id.")
    head_revision: str | None = Field(default=None, description="As revision, of head.")

    @field_validator("head")
    @classmethod
    def _file_folder_or_hub_id(cls, head: str, info: ValidationInfo) -> str:
        return resolve_weights(head, info.context)


class PickScoreConfig(ClipTextPart):
    """PickScore v1 (Kirstain et al. 2023): CLIP ViT-H/14, cosine times the learned scale, about 22."""

    kind: Literal["pickscore"]
    path: str = Field(default="yuvalkirstain/PickScore_v1", min_length=1, description=FOLDER_OR_HUB_ID)


class HpsConfig(ClipTextPart):
    """Human Preference Score v2 and v2.1 (Wu et al. 2023): CLIP ViT-H/14, cosine, about 0.28."""

    kind: Literal["hpsv2"]
    path: str = Field(
        default="xswu/HPSv2", min_length=1, description="A folder, a hub id, or the authors' .pt (format open_clip)."
    )
    format: Literal["open_clip", "transformers"] = Field(
        default="open_clip",
        description="open_clip: the authors' .pt. transformers: a conversion (adams-story/HPSv2-hf).",
    )
    version: Literal["2.0", "2.1"] = Field(default="2.1", description="Which of the authors' files; format open_clip.")

    @field_validator("path")
    @classmethod
    def _folder_or_hub_id(cls, path: str, info: ValidationInfo) -> str:
        return resolve_weights(path, info.context)

    @model_validator(mode="after")
    def _file_is_open_clips(self) -> Self:
        if self.format == "transformers" and self.path.endswith((".pt", ".safetensors")):
            raise ValueError(f"format: transformers needs a folder or a hub id, got the file {self.path}")
        return self


class ClipSimilarityConfig(ClipTextPart):
    """Cosine between the CLIP embeddings of image and prompt (Radford et al. 2021), -1 to 1."""

    kind: Literal["clip_similarity"]
    path: str = Field(default="openai/clip-vit-large-patch14", min_length=1, description=FOLDER_OR_HUB_ID)


class DetectionConfig(NetworkPart):
    """An object named in words, found by OWL-ViT or OWLv2 (Minderer et al. 2022, 2023).

    `add`     log p of the likeliest box: 0 where the object is surely there
    `remove`  log (1 - p) of the likeliest box: 0 where it surely is not
    `count`   minus the distance between `count` and the number of separate boxes above `threshold`
    """

    kind: Literal["detection"]
    path: str = Field(
        default="google/owlv2-base-patch16-ensemble",
        min_length=1,
        description="A folder, or a hub id such as google/owlvit-base-patch32.",
    )
    object: str = Field(min_length=1, description="In words, as in `a photo of a strawberry`.")
    mode: Literal["add", "remove", "count"] = Field(
        default="add", description="Whether the object is to be there, to be gone, or to be there `count` times."
    )
    count: Int | None = Field(default=None, ge=0, le=32, description="Wanted number of objects; mode count only.")
    threshold: Float = Field(default=0.1, gt=0, lt=1, description="p from which a box counts as one; mode count.")
    chunk: Int = Field(
        default=4, ge=1, le=10**6, description="Images scored at once; 3,600 patches each in the default model."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mode == "count") != (self.count is not None):
            raise ValueError(f"count goes with mode: count, and only with it; got mode: {self.mode}")
        return self


class JpegConfig(Part):
    """How well an image compresses as JPEG.

    `size`      the file's kilobytes (1,000 bytes) as Pillow writes it (Black et al. 2023, DDPO); no gradient
    `distance`  mean square difference, times 1,000, between the image and its differentiable JPEG (as in Clark et al.
                2023, DRaFT); needs kornia: the extra `jpeg`
    """

    kind: Literal["jpeg"]
    prefer: Literal["small", "large"] = Field(
        default="small", description="small: compressible images, minus the measure. large: incompressible ones."
    )
    measure: Literal["size", "distance"] = Field(
        default="size", description="size: of the JPEG file, in kB; distance: of the image to its JPEG, differentiable."
    )
    quality: Int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Of the JPEG. None: 95 for size, 50 (the standard's tables) for distance.",
    )
