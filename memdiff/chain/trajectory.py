"""What a rollout leaves: every x_t of every image once, in the dtype the network reads.

Shapes, here and in the whole package: B rows of one batch, n images of this rank, N images over all ranks,
K chain steps, C channels, H W pixels (latent or image), P parameters, F features.
"""

from collections.abc import Sequence

import torch

from memdiff.runtime.memory_tags import memory_tag
from memdiff.runtime.placement import HOST, download, host_buffer, numbers_on, settle, upload


class Trajectory:
    """x_T, ..., x_0 of n images: K+1 states each, on the device or in (pinned) host memory.

    States are rounded to `dtype` when stored, and it is the stored values that are denoised further and scored: a
    replay sees what the rollout saw. Copies to the host do not wait; the first read does.
    """

    def __init__(
        self,
        *,
        steps: int,
        images: int,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        on_host: bool,
    ) -> None:
        self.steps, self.images, self.device = steps, images, device
        self.on_host = on_host and device != HOST
        full = (steps + 1, images, *shape)
        with memory_tag("trajectory"):
            self._states_KnCHW = (
                host_buffer(full, dtype, device) if self.on_host else torch.zeros(full, dtype=dtype, device=device)
            )
        self._settled = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored states."""
        return self._states_KnCHW.dtype

    @property
    def is_rounded(self) -> bool:
        """Whether states are stored in half precision."""
        return self.dtype.itemsize < torch.float32.itemsize

    @property
    def num_bytes(self) -> int:
        """Size of the storage, wherever it lies."""
        return self._states_KnCHW.numel() * self._states_KnCHW.element_size()

    def write(self, state: int, images: range, x_BCHW: torch.Tensor) -> None:
        """Stores x after `state` steps (0: the initial noise, K: x_0) of contiguous images."""
        target = self._states_KnCHW[state, images.start : images.stop]
        if self.on_host:
            download(x_BCHW.to(self.dtype), target)
            self._settled = False
        else:
            target.copy_(x_BCHW)

    def transitions(self, pairs: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, x_s) of (image, step) pairs, each B C H W in the stored dtype on the device."""
        before = self._read([(step, image) for image, step in pairs])
        after = self._read([(step + 1, image) for image, step in pairs])
        return before, after

    def final(self, images: Sequence[int]) -> torch.Tensor:
        """x_0 of these images: B C H W."""
        return self._read([(self.steps, image) for image in images])

    def state(self, state: int) -> torch.Tensor:
        """x after `state` steps of every image: n C H W in the stored dtype on the device."""
        return self._read([(state, image) for image in range(self.images)])

    def _read(self, cells: Sequence[tuple[int, int]]) -> torch.Tensor:
        if not self._settled:
            settle(self.device)
            self._settled = True
        rows = [state * self.images + image for state, image in cells]
        flat = self._states_KnCHW.flatten(0, 1)
        if self.on_host:
            return upload(flat[rows], self.device)
        return flat[numbers_on(self.device, rows)]
