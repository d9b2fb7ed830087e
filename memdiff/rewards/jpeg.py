"""JPEG compressibility and incompressibility.

    size      kilobytes (1,000 bytes) of the file that Pillow writes (Black et al. 2023, DDPO: quality 95). No gradient.
    distance  1,000 mean (x - jpeg(x))^2 through kornia's differentiable codec (in the manner of Clark et al. 2023,
              DRaFT, who minimise the Euclidean distance); smooth images lose less. An image that already lies on the
              codec's grid loses nothing either: watch the size beside it

Shapes: B images, C channels (1 or 3), H W pixels.
"""

import io
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from memdiff.errors import ConfigError
from memdiff.rewards.families_config import JpegConfig
from memdiff.rewards.preprocess import to_rgb

QUALITY_SIZE = 95
QUALITY_DISTANCE = 50
BYTES_PER_KB = 1000
DISTANCE_UNIT = 1000.0


class JpegSize:
    """Minus the kilobytes (prefer small), or plus (large); no gradient. An image that isn't finite scores NaN."""

    differentiable = False

    def __init__(self, part: JpegConfig, kilobytes: Callable[[torch.Tensor, int], float]) -> None:
        """`kilobytes` is the size of an image, H W C in [0, 1], in a quality."""
        self.sign = -1.0 if part.prefer == "small" else 1.0
        self.quality, self.kilobytes = part.quality or QUALITY_SIZE, kilobytes

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """None, since Pillow compresses the images."""
        return ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Kilobytes of each image as JPEG, negative where small is preferred: B fp32, without gradient."""
        del prompts
        images_BHWC = images_BCHW.detach().float().cpu().permute(0, 2, 3, 1)
        scores = [self.sign * self.kilobytes(image_HWC, self.quality) for image_HWC in images_BHWC]
        return torch.tensor(scores, dtype=torch.float32, device=images_BCHW.device)


class JpegDistance:
    """Minus the distance to the image's own JPEG (prefer small), or plus (large). Differentiable; in fp32."""

    differentiable = True

    def __init__(self, part: JpegConfig) -> None:
        """Raises ConfigError where kornia is not installed."""
        try:
            from kornia.enhance import jpeg_codec_differentiable  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                "reward jpeg with measure: distance needs kornia, which is not installed; take measure: size, or "
                "pip install 'kornia>=0.8,<0.10'"
            ) from None
        self._codec = jpeg_codec_differentiable
        self.sign = -1.0 if part.prefer == "small" else 1.0
        self.quality = float(part.quality or QUALITY_DISTANCE)

    @property
    def networks(self) -> Sequence[torch.nn.Module]:
        """None, since the codec has no weights."""
        return ()

    def __call__(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Distance of each image to its own JPEG, negative where small is preferred: B fp32."""
        del prompts
        return self.scores(images_BCHW).float()

    def scores(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """As a call, B in the images' precision."""
        images_B3HW = to_rgb(images_BCHW)
        decoded_B3HW = self._codec(images_B3HW, images_B3HW.new_tensor([self.quality]))
        return self.sign * DISTANCE_UNIT * (images_B3HW - decoded_B3HW).square().flatten(1).mean(dim=1)


def load_jpeg(part: JpegConfig) -> JpegSize | JpegDistance:
    """Raises ConfigError in one line where the differentiable form is asked for without kornia."""
    return JpegSize(part, _kilobytes) if part.measure == "size" else JpegDistance(part)


def skeleton_jpeg(part: JpegConfig) -> JpegSize | JpegDistance:
    """The same; no file is written."""
    return JpegSize(part, lambda _image, _quality: 0.0) if part.measure == "size" else JpegDistance(part)


def _kilobytes(image_HWC: torch.Tensor, quality: int) -> float:
    if not bool(image_HWC.isfinite().all()):
        return float("nan")
    pixels_HWC = (image_HWC.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray((pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).numpy())
    with io.BytesIO() as file:
        picture.save(file, format="JPEG", quality=quality)
        return file.tell() / BYTES_PER_KB
