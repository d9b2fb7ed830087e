"""Host memory of a run's start: SDXL's whole folder in fp16, loaded as `memdiff train` does, on 1, 2 and 4 ranks.

    python -m benchmarks.studies.host_memory [--ranks 1 2 4]     # writes results/host_memory.json and .md
    python -m benchmarks.studies.host_memory --fp32              # the same from files in fp32, host_memory_fp32

The folder is written for it where the system has temporary files, and deleted at the end: random numbers in the full
architecture (UNet 2,567 M parameters, text encoders 123 and 695 M, VAE 84 M; 6.9 GB), CLIP ViT-L/14 in fp32 for the
aesthetic reward (1.7 GB). `--fp32` writes the pipeline in fp32 (13.9 GB), as a folder without the variant fp16 has it.

Each rank is a process that builds all parts of the recipe sdxl_draft_t4 (policy, rewards, DeepSpeed's engine) and
encodes its prompts. There is no GPU: the device's memory is a stand-in (benchmarks/measures/device_stand_in.py), so
that CUDA's own host memory and NCCL's are not in these figures. Text encoders move there and back, and compute nothing.

Physics: weights in a mapped file are pages that the kernel can drop and read again, and that ranks share. What can't be
dropped is anonymous memory: copies, casts, what has come back from the device. So RssAnon, summed over ranks at one
moment, is what a machine of so much memory must have; VmHWM, the peak of all pages that one process had mapped at once,
stands beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT, of_machine
from benchmarks.studies.written import write_study

GB = 10**9
RECIPE = ROOT / "launch" / "recipes" / "sdxl_draft_t4.yaml"
SAMPLED_SECONDS = 0.02
LIMITS_GB = {1: 12.7, 2: 30.0}  # Colab with one T4, Kaggle with two


def write_folder(folder: Path, *, half: bool) -> None:
    """SDXL's pipeline and the reward's files, tensor by tensor: nothing is in memory at once."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from benchmarks.recorder.models import tiny_tokenizer
    from memdiff.models.architectures import SDXL_BASE
    from memdiff.rewards.clip import CLIP_L_VISION
    from memdiff.rewards.clip_heads import AestheticHead

    texts = [CLIPTextConfig(**config) for config in SDXL_BASE.text_encoders]
    build: Any = StableDiffusionXLPipeline
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**SDXL_BASE.unet),
            "vae": AutoencoderKL(**{**SDXL_BASE.vae, "force_upcast": False}),
            "text_encoder": CLIPTextModel(texts[0]),
            "text_encoder_2": CLIPTextModelWithProjection(texts[1]),
        }
        clip = CLIPModel(
            CLIPConfig(
                text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
                vision_config=dict(CLIP_L_VISION),
                projection_dim=768,
            )
        )
        head = AestheticHead(768)
    pipeline = build(
        **parts,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        scheduler=DDIMScheduler(**SDXL_BASE.scheduler),
    )
    sdxl = folder / "sdxl"
    pipeline.save_config(sdxl)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        pipeline.components[name].save_pretrained(str(sdxl / name))
    for name, network in parts.items():
        _save_config(network, sdxl / name)
        file = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        write_random(sdxl / name / f"{file}{'.fp16' if half else ''}.safetensors", network, half=half)
    _save_config(clip, folder / "clip")
    write_random(folder / "clip" / "model.safetensors", clip, half=False)
    write_random(folder / "head.safetensors", head, half=False)


def _save_config(network: Any, folder: Path) -> None:
    from diffusers import ModelMixin

    if isinstance(network, ModelMixin):
        network.save_config(folder)
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)


def write_random(file: Path, network: Any, *, half: bool) -> None:
    """A safetensors file: eight bytes of the header's length, the header, the tensors' bytes one after the other."""
    import torch

    dtype, name = (torch.float16, "F16") if half else (torch.float32, "F32")
    end = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    tensors = {key: tensor for key, tensor in network.state_dict().items() if tensor.is_floating_point()}
    for key, tensor in tensors.items():
        size = tensor.numel() * dtype.itemsize
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (torch.randn(2**22) * 0.02).to(dtype).numpy().tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        while end > 0:
            handle.write(block[:end])
            end -= len(block)


def run_rank(folder: Path, ranks: int) -> None:
    """One rank: everything that is there when a run's first round begins, then its prompts' embeddings."""
    from benchmarks.measures import device_stand_in

    device_stand_in.stand_in()
    import torch
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True
    CPU_Accelerator.supported_dtypes = lambda self: [torch.float, torch.bfloat16, torch.half]
    from memdiff.engine.process_group import start_process_group
    from memdiff.models.text_encoders import TextEncoders
    from memdiff.recipe.reading import read_recipe
    from memdiff.runtime.host_allocator import return_freed_memory
    from memdiff.runtime.ranks import Ranks
    from memdiff.training import build

    def zeros(self: TextEncoders, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(texts), 77, 2048, dtype=torch.half), torch.zeros(len(texts), 1280, dtype=torch.half)

    TextEncoders._run = zeros  # pyright: ignore[reportAttributeAccessIssue]
    build.keep_freed_memory = return_freed_memory  # the stand-in counts as a CPU, whose runs keep it
    here = Ranks(int(os.environ["RANK"]), ranks, torch.device("cpu"))
    start_process_group(here)
    say("imports and process group")
    recipe = read_recipe(RECIPE, changes(folder, ranks))
    parts = build.build_parts(recipe, Ranks(here.rank, ranks, device_stand_in.DEVICE))
    say("built")
    parts.policy.encode(["a", "b"])
    say("prompts encoded")
    here.barrier()


def say(phase: str) -> None:
    """A line on stdout: what has been done, this process's memory then, and the mappings that hold most of it."""
    anonymous = memory_of(os.getpid()).get("RssAnon", 0)
    print(json.dumps({"phase": phase, "anonymous": anonymous, "largest": largest_mappings()}), flush=True)


def largest_mappings(most: int = 5) -> list[dict[str, Any]]:
    """Of this process: name ("" without a file), bytes of anonymous memory, of them in huge pages; Linux alone."""
    mappings: list[dict[str, Any]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            mappings.append({"name": words[5] if len(words) > 5 else "", "anonymous": 0, "huge": 0})
        elif words[0] == "Anonymous:":
            mappings[-1]["anonymous"] = int(words[1]) * 1024
        elif words[0] == "AnonHugePages:":
            mappings[-1]["huge"] = int(words[1]) * 1024
    return sorted(mappings, key=lambda mapping: -mapping["anonymous"])[:most]


def changes(folder: Path, ranks: int) -> list[str]:
    """The recipe's sources, in that folder."""
    sdxl, variant = folder / "sdxl", any((folder / "sdxl" / "unet").glob("*.fp16.*"))
    return [
        f"model.path={sdxl}", f"model.vae={sdxl / 'vae'}", f"model.variant={'fp16' if variant else 'null'}",
        f"reward.0.path={folder / 'clip'}", f"reward.0.head={folder / 'head.safetensors'}",
        f"run.images_per_round={4 * ranks}", "memory.activation_checkpointing=feed_forwards", "memory.micro_batch=1",
    ]  # fmt: skip


def memory_of(process: int) -> dict[str, int]:
    """Bytes by their names in /proc/PID/status; nothing where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile", "RssShmem", "VmHWM")))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def measured(folder: Path, ranks: int) -> dict[str, Any]:
    """Starts the ranks and watches them until they end. Raises RuntimeError where one fails."""
    environment = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    words = [sys.executable, "-m", "benchmarks.studies.host_memory", "--folder", str(folder), "--ranks", str(ranks)]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        processes = [
            subprocess.Popen(
                [*words, "--rank"], cwd=ROOT, stdout=said if rank == 0 else subprocess.DEVNULL,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"},
            )
            for rank in range(ranks)
        ]  # fmt: skip
        peak, highest = _watched(processes)
        if any(process.wait() for process in processes):
            raise RuntimeError(f"a rank of {ranks} failed")
        said.seek(0)
        phases = [json.loads(line) for line in said if line.startswith('{"phase"')]
    return {
        "ranks": ranks, "anonymous_peak_bytes": peak, "highest_rss_bytes": highest, "phases": phases,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def _watched(processes: Sequence[subprocess.Popen[Any]]) -> tuple[int, int]:
    """(the peak of the sum of what can't be dropped, the highest VmHWM of one process)."""
    peak, highest = 0, 0
    while any(process.poll() is None for process in processes):
        each = [memory_of(process.pid) for process in processes]
        peak = max(peak, sum(memory.get("RssAnon", 0) + memory.get("RssShmem", 0) for memory in each))
        highest = max(highest, *(memory.get("VmHWM", 0) for memory in each))
        time.sleep(SAMPLED_SECONDS)
    return peak, highest


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As README's tables are written."""
    columns = "ranks | files | peak that can't be dropped, all ranks (GB) | highest VmHWM of a rank (GB) | limit (GB)"
    lines = [f"| {columns} |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['ranks']} | {row['files']} | {row['anonymous_peak_bytes'] / GB:.2f} | "
        f"{row['highest_rss_bytes'] / GB:.2f} | {LIMITS_GB.get(row['ranks'], '')} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.host_memory", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--fp32", action="store_true", help="the pipeline's files in fp32")
    parser.add_argument("--folder", type=Path, help="a folder that stays; default: one that is deleted")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def _folder(options: argparse.Namespace) -> Iterator[Path]:
    if options.folder is not None and (options.folder / "head.safetensors").is_file():
        yield options.folder
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sdxl_"))
    try:
        write_folder(folder, half=not options.fp32)
        yield folder
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def main(words: Sequence[str] | None = None) -> None:
    """Measures and writes, or is one rank."""
    options = _options(words)
    if options.rank:
        run_rank(options.folder, options.ranks[0])
        return
    machine = of_machine()
    for folder in _folder(options):
        half = any((folder / "sdxl" / "unet").glob("*.fp16.*"))
        rows = [{**measured(folder, ranks), "files": "fp16" if half else "fp32"} for ranks in options.ranks]
        name, option = ("host_memory", "") if half else ("host_memory_fp32", " --fp32")
        write_study(
            name, f"python -m benchmarks.studies.host_memory{option}", machine, {"device": "a stand-in, see the study"},
            {"rows": rows}, table(rows),
        )  # fmt: skip


if __name__ == "__main__":
    main()
