"""The cards a plan can be made for, and what a GPU holds beside a program's tensors. No torch.

`total_gib` is what CUDA reports (torch.cuda.mem_get_info), which is less than the name of the card: the driver and, on
cards with it, error correction take their part. The numbers were read in public out-of-memory messages ("GPU 0 has a
total capacity of ..."), the smallest where they differ by driver; `peak_tflops` (dense fp16 matrix products with fp32
sums), `bandwidth_gb` (10^9 bytes a second) and the compute capability in NVIDIA's data sheets.
"""

from dataclasses import dataclass
from types import MappingProxyType

from memdiff.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One card. `sm` is its compute capability times ten: bf16 from 80, flash attention 2 from 80, fp16 on all."""

    name: str
    total_gib: float
    sm: int
    peak_tflops: float
    bandwidth_gb: float

    @property
    def bf16(self) -> bool:
        """Whether its matrix units take bf16."""
        return self.sm >= 80

    @property
    def total_bytes(self) -> int:
        """As CUDA reports it."""
        return int(self.total_gib * GIB)

    def budget_bytes(self, ranks: int) -> int:
        """What torch's allocator may hold on it: the total less the context and, with several ranks, NCCL."""
        return self.total_bytes - CONTEXT_BYTES - (NCCL_BYTES if ranks > 1 else 0)


# What fake tensors don't show.
CONTEXT_BYTES = int(0.40 * GIB)
"""The CUDA context with lazily loaded kernels: "currently used ~300MB" (pytorch issue 107667, CUDA >= 11.7; 1 GB before
that), and 0.1 GiB for the libraries' own handles."""
NCCL_BYTES = int(0.20 * GIB)
"""One communicator over PCIe. An estimate, not measured: a few channels with buffers of 4 MiB (NCCL_BUFFSIZE's default)
and what NCCL loads. With NVLink it is more: 544 to 688 MB on four A100 (nccl issue 964), on cards with room for it."""
WORKSPACE_BYTES = 64 * 2**20
"""cuBLAS: 4096 kB x 8 + 16 kB x 8 a handle and stream, 8.1 MiB before Hopper and 32 MiB on it (torch's CUDAContext,
getChosenWorkspaceSize); the rest for cuDNN's convolutions, whose algorithms in fp16 ask for little (torch without
cudnn.benchmark takes the heuristics' first choice)."""
FRAGMENTATION = 0.03
"""Reserved but not live, as a share of what is live: blocks are rounded to 512 bytes, large segments to 2 MiB, and what
a segment has left over waits for a smaller tensor. With PYTORCH_ALLOC_CONF=expandable_segments:True, which the plan
assumes on CUDA, segments grow and this stays small."""

MATRIX_SHARE = 0.4
"""Of a card's peak that a denoiser reaches, for an estimate of hours: SD 1.5 runs on a T4 at about 25 of 65 TFLOP/s."""
PCIE_BYTES_A_SECOND = 12e9
"""PCIe 3 x16 from pinned memory; twice that on PCIe 4."""

_CARDS = (
    # Turing data sheet: 65 TFLOP/s, 320 GB/s. Reported: 14.75 GiB (Open-Sora issue 697), 14.56 (CatVTON issue 133).
    Gpu("t4", 14.56, 75, 65, 320),
    # Pascal, no matrix units: fp16 at 18.7 TFLOP/s. Reported: 15.89 GiB.
    Gpu("p100", 15.89, 60, 18.7, 732),
    # Volta data sheet: 125 TFLOP/s (SXM2), 900 GB/s. Reported: 15.75 GiB (GPT2-Chinese 215), 31.74 (LLaVA issue 812).
    Gpu("v100-16", 15.75, 70, 125, 900),
    Gpu("v100-32", 31.74, 70, 125, 900),
    # GeForce Turing: fp16 with fp32 sums runs at half rate, 54 TFLOP/s. Reported: 10.76 GiB.
    Gpu("rtx2080ti", 10.76, 75, 54, 616),
    # Ampere data sheets. A10: 125 TFLOP/s, 600 GB/s; reported 22.06 (A10G, 70 TFLOP/s: 21.98). RTX 3090: 71; 23.68.
    Gpu("a10", 22.06, 86, 125, 600),
    Gpu("a10g", 21.98, 86, 70, 600),
    Gpu("rtx3060", 11.76, 86, 25.5, 360),
    Gpu("rtx3090", 23.68, 86, 71, 936),
    Gpu("a6000", 47.54, 86, 155, 768),
    # Reported: 39.39 to 39.50 GiB (CoSeR issue 10), 79.14 (Control-GIC issue 6).
    Gpu("a100-40", 39.39, 80, 312, 1555),
    Gpu("a100-80", 79.14, 80, 312, 2039),
    # Ada data sheets. L4: 121 TFLOP/s dense; nvidia-smi says 23034 MiB, CUDA 22.03. RTX 4090: 165; 23.64 (VGen issue
    # 104). L40S: 362; 44.40 (Qwen3-VL issue 2097).
    Gpu("l4", 22.03, 89, 121, 300),
    Gpu("rtx4090", 23.64, 89, 165, 1008),
    Gpu("l40s", 44.40, 89, 362, 864),
    # Hopper data sheets (SXM). H100: 989 TFLOP/s dense; reported 79.10. H200: the same unit with 141 GB; 139.72.
    Gpu("h100", 79.10, 90, 989, 3350),
    Gpu("h200", 139.72, 90, 989, 4800),
)
CARDS = MappingProxyType({card.name: card for card in _CARDS})
ALIASES = MappingProxyType({"v100": "v100-16", "a100": "a100-40", "3090": "rtx3090", "4090": "rtx4090"})


def find_gpu(name: str) -> Gpu:
    """The card of that name, however it is written (RTX 4090, rtx-4090). Raises ConfigError listing those known."""
    plain = name.lower().removeprefix("nvidia").replace("geforce", "").strip(" -_")
    squeezed = {card.replace("-", ""): card for card in (*CARDS, *ALIASES)}
    found = squeezed.get(plain.replace(" ", "").replace("-", "").replace("_", "").replace("gb", ""))
    if found is None:
        raise ConfigError(
            f"--gpu must be one of {', '.join(CARDS)}, got {name!r}; for another card give --budget-gib, its memory "
            f"less {(CONTEXT_BYTES + NCCL_BYTES) / GIB:.1f} GiB"
        )
    return CARDS[ALIASES.get(found, found)]
