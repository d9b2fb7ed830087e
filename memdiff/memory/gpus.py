"""The cards a plan can be made for, and their overheads: context, NCCL, workspace, fragmentation. No torch.

`total_gib` is what CUDA reports (torch.cuda.mem_get_info), which is less than the name of the card: the driver and, on
cards with it, error correction take their part. It is read where a public out-of-memory message says it ("GPU 0 has a
total capacity of ..."), the smallest where messages differ by driver; the message is named beside the card. "Vendor
figure, not measured" stands where none is: the total is then the vendor's capacity less the share that is usual for
cards of its kind. `peak_tflops` (dense fp16 matrix products with fp32 sums; where a data sheet gives them with
sparsity, half of it), `bandwidth_gb` (10^9 bytes a second) and the compute capability are the vendor's, from the data
sheet or white paper that is named; none of them is measured here.
"""

from dataclasses import dataclass
from types import MappingProxyType

from memdiff.errors import ConfigError
from memdiff.runtime.units import GIB


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
        """What a plan may fill: the total less the context, with several ranks NCCL, and the margin."""
        return self.total_bytes - CONTEXT_BYTES - (NCCL_BYTES if ranks > 1 else 0) - MARGIN_BYTES


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
MARGIN_BYTES = int(0.30 * GIB)
"""Kept free on a named card, and on those that a run finds: a driver's and NCCL's own part differ from machine to
machine, and a public log of a T4 shows 1.08 GiB reserved and unallocated beside 13.31 allocated."""

PCIE_BYTES_A_SECOND = 12e9
"""PCIe 3 x16 carries 15.75 GB/s; from pinned memory about three quarters of it arrive. Assumed, not measured; twice
that on PCIe 4."""

_CARDS = (
    # NVIDIA T4 data sheet: 65 TFLOP/s, 320 GB/s, 16 GB. Error correction takes a sixteenth of them: nvidia-smi's total
    # is 15360 MiB (MagicQuill issue 57, driver 535) or, with drivers that leave out their own part, 15109 MiB. CUDA's
    # is 14.75 GiB, 256 MiB below 15360 (Open-Sora issue 697), or 14.56, 451 below (CatVTON issue 133), as the driver
    # takes more or less for itself. A plan has to hold under either driver and starts from the smaller. Where a larger
    # card is made to stand for a T4, torch's allocator is capped at the larger, 14.75: a cap is a bound for what a
    # measurement may take, and what it takes is compared with the plan in bytes.
    Gpu("t4", 14.56, 75, 65, 320),
    # Tesla P100 PCIe data sheet: no matrix units; fp16 at 18.7 TFLOP/s, 732 GB/s. 16 GB without a part for error
    # correction, which HBM2 has beside them; total: vendor figure less 0.1 GiB, not measured.
    Gpu("p100", 15.89, 60, 18.7, 732),
    # Tesla V100 SXM2 data sheet: 125 TFLOP/s, 900 GB/s. Total: GPT2-Chinese issue 215; LLaVA issue 812.
    Gpu("v100-16", 15.75, 70, 125, 900),
    Gpu("v100-32", 31.74, 70, 125, 900),
    # Turing white paper, RTX 2080 Ti reference card: 53.8 TFLOP/s with fp32 sums, 616 GB/s. Total: 10.76, on an 11 GB
    # 2080 Ti in JDAI-CV/image-captioning issue 11.
    Gpu("rtx2080ti", 10.76, 75, 54, 616),
    # A10 data sheet: 125 TFLOP/s, 600 GB/s, 24 GB with error correction. A10G, the vendor's figures for the card of AWS
    # G5: 70 TFLOP/s, 600 GB/s. Totals: vendor figure (24 GB) less error correction and the driver, not measured.
    Gpu("a10", 22.06, 86, 125, 600),
    Gpu("a10g", 21.98, 86, 70, 600),
    # RTX 3060, 12 GB: 112 third-generation matrix units x 64 products x 2 x 1.777 GHz boost = 25.5 TFLOP/s with fp32
    # sums; vendor's specification: 360 GB/s. Total: 11.75, StyleGaussian issue 12.
    Gpu("rtx3060", 11.75, 86, 25.5, 360),
    # GA102 white paper, RTX 3090: 71 TFLOP/s with fp32 sums, 936 GB/s. Total: 23.69, GraphAvatar issue 4 (driver 535);
    # a hundredth less for others, not measured.
    Gpu("rtx3090", 23.68, 86, 71, 936),
    # RTX A6000 data sheet: 309.7 TFLOP/s with sparsity, 768 GB/s. Total: vendor figure (48 GB) less the driver, error
    # correction off as it is delivered; not measured.
    Gpu("a6000", 47.54, 86, 155, 768),
    # A100 data sheet: 312 TFLOP/s, 1,555 GB/s (40 GB) and 2,039 GB/s (80 GB SXM). Totals: 39.50 in CoSeR issue 10, a
    # tenth less under other drivers, not measured; 79.14 in Control-GIC issue 6.
    Gpu("a100-40", 39.39, 80, 312, 1555),
    Gpu("a100-80", 79.14, 80, 312, 2039),
    # L4 data sheet: 242 TFLOP/s with sparsity, 300 GB/s, 24 GB with error correction. Total: nvidia-smi's 23034 MiB
    # less the driver's part; vendor figure, not measured.
    Gpu("l4", 22.03, 89, 121, 300),
    # Ada white paper, RTX 4090: 165.2 TFLOP/s with fp32 sums, 1,008 GB/s. Total: 23.64, Phidias-Diffusion issue 8 and
    # VGen issue 104.
    Gpu("rtx4090", 23.64, 89, 165, 1008),
    # L40S data sheet: 362 TFLOP/s, 864 GB/s. Total: 44.40 in Qwen3-VL issue 2097, of an L40, which has the same memory.
    Gpu("l40s", 44.40, 89, 362, 864),
    # H100 SXM data sheet: 1,979 TFLOP/s with sparsity, 3.35 TB/s. Total: 79.11, vLLM issue 27508.
    Gpu("h100", 79.11, 90, 989, 3350),
    # H200 SXM data sheet: the matrix units of the H100, 4.8 TB/s, 141 GB. Total: vendor figure less the driver, not
    # measured.
    Gpu("h200", 139.72, 90, 989, 4800),
)
CARDS = MappingProxyType({card.name: card for card in _CARDS})
ALIASES = MappingProxyType({"v100": "v100-16", "a100": "a100-40", "3090": "rtx3090", "4090": "rtx4090"})


def find_gpu(name: str) -> Gpu:
    """The card of that name, however it is written (RTX 4090, rtx-4090). Raises ConfigError listing those known."""
    plain = name.lower().removeprefix("nvidia").replace("geforce", "").strip(" -_")
    squeezed = {card.replace("-", ""): card for card in (*CARDS, *ALIASES)}
    card_name = squeezed.get(plain.replace(" ", "").replace("-", "").replace("_", "").replace("gb", ""))
    if card_name is None:
        raise ConfigError(
            f"--gpu must be one of {', '.join(CARDS)}, got {name!r}; for another card give --budget-gib, its memory "
            f"less {(CONTEXT_BYTES + NCCL_BYTES + MARGIN_BYTES) / GIB:.1f} GiB"
        )
    return CARDS[ALIASES.get(card_name, card_name)]
