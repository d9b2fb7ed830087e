"""Random weights and inputs that an oracle and a test make alike from a seed: nothing large is committed. numpy only.

Shapes: B images, C channels, H W pixels.
"""

import hashlib

import numpy as np

# Spread of each kind of tensor of ImageReward's checkpoint, by the first ending that fits its name: (mean, std), or
# ("fan_in", gain) for std = gain / sqrt(columns). Chosen so that hyperparameters show: queries and keys give attention
# logits of spread about 1.5, so that another number of heads is another function; the residual streams stay near
# 0.03, so that an eps of 1e-5 is no longer small against their variance; LayerNorm's scales differ by channel.
SPREADS: tuple[tuple[str, tuple[float | str, float]], ...] = (
    ("patch_embed.proj.weight", ("fan_in", 0.02)),
    ("patch_embed.proj.bias", (0.0, 0.005)),
    ("cls_token", (0.0, 0.02)),
    ("pos_embed", (0.0, 0.02)),
    ("attn.qkv.weight", ("fan_in", 1.2)),
    ("attn.qkv.bias", (0.0, 0.1)),
    ("attn.proj.weight", ("fan_in", 0.02)),
    ("attn.proj.bias", (0.0, 0.002)),
    ("mlp.fc1.weight", ("fan_in", 1.0)),
    ("mlp.fc1.bias", (0.0, 0.2)),
    ("mlp.fc2.weight", ("fan_in", 0.01)),
    ("mlp.fc2.bias", (0.0, 0.002)),
    ("LayerNorm.weight", (0.03, 0.006)),
    ("LayerNorm.bias", (0.0, 0.006)),
    ("norm1.weight", (1.0, 0.2)),
    ("norm2.weight", (1.0, 0.2)),
    ("norm.weight", (1.0, 0.2)),
    ("norm1.bias", (0.0, 0.2)),
    ("norm2.bias", (0.0, 0.2)),
    ("norm.bias", (0.0, 0.2)),
    ("word_embeddings.weight", (0.0, 0.03)),
    ("position_embeddings.weight", (0.0, 0.03)),
    ("crossattention.self.key.weight", ("fan_in", 1.2)),
    ("self.query.weight", ("fan_in", 40.0)),
    ("self.key.weight", ("fan_in", 40.0)),
    ("crossattention.self.value.weight", ("fan_in", 0.025)),
    ("self.value.weight", ("fan_in", 8.0)),
    ("intermediate.dense.weight", ("fan_in", 50.0)),
    ("attention.output.dense.weight", ("fan_in", 0.5)),
    ("output.dense.weight", ("fan_in", 0.04)),
    ("output.dense.bias", (0.0, 0.005)),
    ("layers.0.weight", ("fan_in", 30.0)),
    (".weight", ("fan_in", 1.0)),
    (".bias", (0.0, 0.05)),
)


def generator(seed: int, name: str) -> np.random.Generator:
    """A stream of its own for every (seed, name): Philox, keyed by their sha256."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def fill(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of the checkpoint, fp32: uniform about its mean, of the spread above."""
    where, spread = next(values for ending, values in SPREADS if name.endswith(ending))
    if where == "fan_in":
        mean, std = 0.0, spread / float(np.sqrt(np.prod(shape[1:])))
    else:
        mean, std = float(where), spread
    values = generator(seed, name).random(shape, dtype=np.float32)
    values -= np.float32(0.5)
    values *= np.float32(std * np.sqrt(12))
    values += np.float32(mean)
    return values


def photograph(seed: int, name: str, height: int, width: int) -> np.ndarray:
    """A synthetic photograph, H W 3 uint8: smooth shading, hard edges and a little grain."""
    draw = generator(seed, name)
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float64)
    image_HWC = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(6):
            turn, period, phase = draw.random(3) * (2 * np.pi, 120, 2 * np.pi)
            wave_HW = np.sin((np.cos(turn) * x_HW + np.sin(turn) * y_HW) / (period + 8) + phase)
            image_HWC[:, :, channel] += wave_HW
        for _ in range(3):
            turn, offset, step = draw.random(3) * (2 * np.pi, 1, 4) - (0, 0.5, 2)
            image_HWC[:, :, channel] += step * (np.cos(turn) * x_HW + np.sin(turn) * y_HW > offset * width)
    image_HWC += draw.random(image_HWC.shape) * 0.4
    low, high = image_HWC.min(), image_HWC.max()
    return np.round((image_HWC - low) / (high - low) * 255).astype(np.uint8)


def images(seed: int, count: int, side: int) -> np.ndarray:
    """Square synthetic photographs in [0, 1]: B 3 H W fp32."""
    pictures = [photograph(seed, f"image {number}", side, side) for number in range(count)]
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
