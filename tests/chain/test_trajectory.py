"""What a rollout leaves: every state once, rounded once.

Shapes: K + 1 states of n images, C H W.
"""

import itertools

import pytest
import torch

from memdiff.chain.noise import Noise, Stream
from memdiff.chain.trajectory import Trajectory
from memdiff.models.policy import rollout, sample_step
from tests.helpers.tiny import tiny_policy

CPU = torch.device("cpu")
SHAPE = (2, 3, 5)
STEPS, IMAGES = 4, 6


def empty(dtype: torch.dtype = torch.float32, *, on_host: bool = False) -> Trajectory:
    return Trajectory(steps=STEPS, images=IMAGES, shape=SHAPE, dtype=dtype, device=CPU, on_host=on_host)


def states() -> torch.Tensor:
    """K+1 n C H W fp32, every number different and none of them exact in fp16."""
    count = (STEPS + 1) * IMAGES * 2 * 3 * 5
    return (torch.arange(count, dtype=torch.float32) / 977 + 1e-4).view(STEPS + 1, IMAGES, *SHAPE)


def written(dtype: torch.dtype = torch.float32, *, on_host: bool = False) -> Trajectory:
    """All states, in uneven blocks of images, the later ones first."""
    trajectory = empty(dtype, on_host=on_host)
    for state, block in itertools.product(range(STEPS + 1), (range(4, 6), range(3), range(3, 4))):
        trajectory.write(state, block, states()[state, block.start : block.stop])
    return trajectory


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_are_rounded_once(dtype: torch.dtype, on_host: bool):
    """What is read is what was written, rounded to the storage dtype and to nothing else, wherever it is kept."""
    trajectory = written(dtype, on_host=on_host)
    truth = states().to(dtype)
    pairs = [(image, step) for step in range(STEPS) for image in range(IMAGES)]
    before, after = trajectory.transitions(pairs)
    assert trajectory.dtype == before.dtype == after.dtype == dtype
    assert torch.equal(before, truth[:-1].flatten(0, 1)) and torch.equal(after, truth[1:].flatten(0, 1))
    again, _ = trajectory.transitions(pairs)
    assert torch.equal(again, before)


def test_transitions_by_pairs_in_any_order():
    """(image, step) pairs of different steps in one batch, repeated ones too: x_t is state `step`, x_s the next one."""
    trajectory, truth = written(), states()
    pairs = [(5, 3), (0, 0), (2, 1), (0, 3), (5, 3)]
    before, after = trajectory.transitions(pairs)
    assert torch.equal(before, torch.stack([truth[step, image] for image, step in pairs]))
    assert torch.equal(after, torch.stack([truth[step + 1, image] for image, step in pairs]))


def test_a_state_is_stored_once():
    """x_s of one step and x_t of the next are one number in memory: n (K + 1) states are all there is, not 2 n K."""
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        assert empty(dtype).num_bytes == (STEPS + 1) * IMAGES * 2 * 3 * 5 * size
    trajectory = written()
    trajectory.write(2, range(1, 2), torch.full((1, *SHAPE), -1.0))
    assert (trajectory.transitions([(1, 1)])[1] == -1).all() and (trajectory.transitions([(1, 2)])[0] == -1).all()
    assert torch.equal(trajectory.transitions([(1, 0)])[1][0], states()[1, 1])


def test_final_states():
    """x_0 is the state after the last step, of the images asked for and in that order."""
    trajectory, truth = written(), states()
    assert torch.equal(trajectory.final(range(IMAGES)), truth[STEPS])
    assert torch.equal(trajectory.final([4, 1]), truth[STEPS, [4, 1]])


def test_what_is_written_or_read_is_a_copy():
    """Neither the tensor that was handed in nor the one that was handed out changes what is stored."""
    trajectory, x = empty(), torch.ones(2, *SHAPE)
    trajectory.write(0, range(2), x)
    x.zero_()
    before, _ = trajectory.transitions([(0, 0)])
    before.zero_()
    assert (trajectory.transitions([(0, 0)])[0] == 1).all()


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
def test_a_replay_sees_what_the_rollout_saw(storage: torch.dtype):
    """The stored x_t is what was denoised further: one step from it, with the same noise, gives the stored x_s bit for
    bit, at every step of every image, and the rollout's result is the stored x_0."""
    policy = tiny_policy(steps=3)
    noise = Noise(seed=3, stream=Stream.ROLLOUT, round_number=1, shape=policy.shape)
    trajectory = Trajectory(steps=3, images=4, shape=policy.shape, dtype=storage, device=CPU, on_host=False)
    images = range(10, 14)  # this rank's block starts at image 10
    x_0 = rollout(policy, noise, images, [""] * 4, batch=2, storage=storage, store=trajectory.write)
    assert torch.equal(x_0, trajectory.final(range(4)))
    for step, rows in itertools.product(range(3), ([0, 1], [2, 3])):
        before, after = trajectory.transitions([(row, step) for row in rows])
        drawn = sample_step(policy, noise, before, step, [images[row] for row in rows], [""] * 2)
        assert torch.equal(drawn.to(storage), after)
