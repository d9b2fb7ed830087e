"""Host memory: the plan beside what a process on a stand-in for a GPU takes, and the note on too little."""

import json
from pathlib import Path

import pytest

from memdiff.memory.host import CUDA_BYTES, LAUNCHER_BYTES, PROCESS_BYTES, host_memory, machine_bytes
from memdiff.memory.zero2 import training_states
from memdiff.models.networks import read_network
from memdiff.planner.command import plan_recipe
from memdiff.runtime.weight_headers import kinds_of_numbers
from tests.helpers.processes import run_python

MIB = 2**20
_STATUS = Path("/proc/self/status").read_text() if Path("/proc/self/status").is_file() else ""


def test_host_memory_is_the_larger_of_load_and_run() -> None:
    """A million fp16 numbers trained, so that flattening takes 2 x 2 MB beside 10 MB that wait; 30 MB in a round."""
    states = training_states(
        10**6, ranks=2, half=True, bits=32, ema=False, offload=False, bucket_elements=1024, largest_elements=1024
    )
    small = host_memory(30 * 10**6, waiting_bytes=10**7, states=states, ranks=2)
    assert small.load_bytes == 14 * 10**6
    assert small.total_bytes == 2 * (PROCESS_BYTES + CUDA_BYTES + 30 * 10**6) + LAUNCHER_BYTES
    large = host_memory(10**7, waiting_bytes=10**7, states=states, ranks=1)
    assert large.total_bytes == PROCESS_BYTES + CUDA_BYTES + 14 * 10**6 + LAUNCHER_BYTES


def test_a_machine_with_too_little_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """In the plan's notes, first; a machine that is large enough is not mentioned."""
    for host_gib, words in ((1.0, "ranks need"), (1000.0, None)):
        said = plan_recipe(
            Path("launch/recipes/digits_draft.yaml"), ["memory.activation_checkpointing=none"], gpu="t4",
            budget_gib=None, ranks=2, host_gib=host_gib, as_json=True,
        )  # fmt: skip
        assert said is not None
        plan = json.loads(said)
        notes = [note for note in plan["notes"] if note.startswith("host memory")]
        assert len(notes) == (1 if words else 0) and plan["notes"][: len(notes)] == notes
        assert plan["host_total_bytes"] > 2 * (PROCESS_BYTES + CUDA_BYTES)
        if words:
            assert words in notes[0] and "the machine has 1.0" in notes[0]


def test_this_machine_says_how_much_it_has() -> None:
    here = machine_bytes()
    assert here is None or here > 256 * MIB


@pytest.mark.skipif("RssAnon" not in _STATUS, reason="this system doesn't say what of a process is anonymous memory")
def test_planned_host_memory_is_what_a_process_takes(tmp_path: Path) -> None:
    """A UNet of 60 M parameters and more, in fp32 on disk, run in fp16 on the stand-in (benchmarks/measures).

    Loading leaves none of it in anonymous memory, neither the file's 4 bytes an element nor the cast's 2; when it
    leaves the device its 2 bytes are there, as planned. The slack is for what the libraries' heaps keep. The text
    encoder's weights on the host are the same after it was on the device.
    """
    done = run_python("-m", "tests.workers.host_memory", str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["encoder_waits_untouched"] and measured["encoder_buffers_are_back"]
    half_bytes = 2 * measured["unet_elements"]
    slack = half_bytes // 4
    assert half_bytes > 100 * MIB
    assert measured["loaded"] < measured["planned_load"] + slack
    assert measured["planned_run"] == pytest.approx(half_bytes, rel=0.02)
    assert abs(measured["away"] - measured["planned_run"]) < slack


@pytest.mark.parametrize(("content", "kinds"), [(b"", set()), (b"\xff" * 20, set())])
def test_damaged_headers_hold_no_numbers(content: bytes, kinds: set[str], tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert kinds_of_numbers(tmp_path / "a.safetensors") == kinds


def test_fp32_files_are_read_as_they_are(tmp_path: Path) -> None:
    """For fp16 too, whose caster is the network's user; half files, or both in one, in the dtype that was asked for."""
    import torch
    from safetensors.torch import load_file, save_file

    from benchmarks.recorder.models import tiny_conditioned_unet

    unet = tiny_conditioned_unet()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    unet.save_pretrained(tmp_path)
    tensors, first = load_file(file), next(iter(unet.state_dict()))
    for change, expected in (
        ({}, torch.float32),
        ({first: tensors[first].half()}, torch.float16),
        ({name: tensor.half() for name, tensor in tensors.items()}, torch.float16),
    ):
        save_file({**tensors, **change}, file, metadata={"format": "pt"})
        read = read_network(type(unet), str(tmp_path), dtype=torch.float16)
        assert {parameter.dtype for parameter in read.parameters()} == {expected}
        assert torch.equal(read.half().state_dict()[first], tensors[first].half())
