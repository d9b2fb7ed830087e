"""The reverse sweep gives the gradient of one autograd graph, and its memory does not grow with the chain."""

import itertools
from typing import Any

import pytest
import torch

from memdiff.methods.config import DraftConfig
from memdiff.methods.draft import Draft
from memdiff.models.config import AdapterConfig
from memdiff.planner.ledger import Ledger
from tests.helpers import half_precision
from tests.helpers.one_graph import distance, gradient_of, knobs, make, round_of, truth_of, waves
from tests.helpers.tiny import tiny_policy, tiny_sdxl, tiny_stable_diffusion

IMAGES = 3
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def draft(**config: Any) -> DraftConfig:
    return DraftConfig.model_validate({"kind": "draft", **config})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("steps", "last", "clip"),
    # 50 steps of untrained weights overflow where x0 is not clipped; the text model below takes them unclipped.
    [(7, 1, True), (7, 2, True), (7, 7, True), (50, 50, True), (7, 1, False), (7, 2, False), (7, 7, False)],
)
def test_gradient_is_that_of_one_graph(steps: int, last: int, clip: bool, eta: float, dtype: torch.dtype) -> None:
    """K = 1, 2, 7, 50 of a real UNet's steps, x0 clipped or not: <= 1e-10 relative in fp64, <= 1e-5 in fp32."""
    policy = tiny_policy(steps=steps, eta=eta, dtype=dtype, clip=clip)
    this_round = round_of(policy, IMAGES)
    got, metrics = gradient_of(make(Draft, draft(last_steps=last), policy), policy, this_round)
    truth = truth_of(policy, this_round, [steps - last] * IMAGES)
    assert got.dtype == dtype and distance(got, truth) <= TOLERANCE[dtype]
    differentiated = [norm is not None for norm in metrics["costate_norm"]]
    assert differentiated == [step >= steps - last for step in range(steps)]


LONG = [(torch.float64, True, 5.0), (torch.float32, False, None)]  # of 50 steps, without `-m slow`
TEXT = [
    pytest.param(
        steps, last, guidance, checkpointing, dtype,
        marks=[pytest.mark.slow] if steps == 50 and (dtype, checkpointing, guidance) not in LONG else [],
    )
    for dtype, (steps, last), checkpointing, guidance in itertools.product(
        (torch.float64, torch.float32), ((7, 1), (7, 2), (7, 7), (50, 50)), (False, True), (None, 5.0)
    )
]  # fmt: skip


@pytest.mark.parametrize(("steps", "last", "guidance", "checkpointing", "dtype"), TEXT)
def test_text_models_with_and_without_guidance(
    steps: int, last: int, guidance: float | None, checkpointing: bool, dtype: torch.dtype
) -> None:
    """A tiny Stable Diffusion with LoRA: through both branches of guidance, the VAE, checkpoints."""
    options: dict[str, Any] = {
        "adapter": AdapterConfig(rank=2),
        "vae_checkpointing": "layers" if checkpointing else "none",
    }
    policy = tiny_stable_diffusion(
        steps=steps,
        eta=1.0,
        guidance=guidance,
        dtype=dtype,
        activation_checkpointing="blocks" if checkpointing else "none",
        **options,
    )
    off_the_start(policy)
    this_round = round_of(policy, IMAGES)
    got, _ = gradient_of(make(Draft, draft(last_steps=last), policy, kept_steps=2), policy, this_round)
    assert distance(got, truth_of(policy, this_round, [steps - last] * IMAGES)) <= TOLERANCE[dtype]


def off_the_start(policy: Any) -> None:
    """LoRA's B is zero at first, which would make half of the gradient zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kept", [0, 3, 7, 50])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_steps_and_checkpointing_do_not_matter(kept: int, checkpointing: bool) -> None:
    """Graphs kept from the rollout for none, some, all of 7 steps; micro-batches of 2 of 5 images: <= 1e-5."""
    policy = tiny_policy(steps=9, clip=True, checkpointing=checkpointing)
    this_round = round_of(policy, 5)
    method = make(Draft, draft(last_steps=7), policy, micro_batch=2, kept_steps=kept, decode_batch=2)
    got, _ = gradient_of(method, policy, this_round)
    plain = tiny_policy(steps=9, clip=True)
    assert distance(got, truth_of(plain, round_of(plain, 5), [2] * 5)) <= 1e-5


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 64])
@pytest.mark.parametrize("chunk", [1, 3])
def test_grouping_does_not_matter(micro_batch: int, chunk: int) -> None:
    """Micro-batches, reward chunks, decoder batches; two parts with weights of either sign."""
    policy = tiny_policy(steps=4)
    this_round, reward = round_of(policy, 5), waves(1.0, -0.3, chunk=chunk)
    method = make(Draft, draft(last_steps=3), policy, reward, micro_batch=micro_batch, decode_batch=3)
    got, _ = gradient_of(method, policy, this_round)
    assert distance(got, truth_of(policy, this_round, [1] * 5, reward)) <= 1e-5


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("window", [(0, 2), (1, 3), (3, 5)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_steps_without_an_adapter_pass_the_costate_on(window: tuple[int, int], kept: int, checkpointing: bool) -> None:
    """An adapter active early, in the middle, late: against one graph in which it is off at the other steps."""
    adapter = AdapterConfig(rank=2, steps=window)
    policy = tiny_policy(steps=5, adapter=adapter, checkpointing=checkpointing)
    off_the_start(policy)
    this_round = round_of(policy, IMAGES)
    got, metrics = gradient_of(make(Draft, draft(last_steps="all"), policy, kept_steps=kept), policy, this_round)
    plain = tiny_policy(steps=5, adapter=adapter)
    off_the_start(plain)
    assert distance(got, truth_of(plain, round_of(plain, IMAGES), [0] * IMAGES)) <= 1e-5
    assert [norm is not None for norm in metrics["step_gradient_norm"]] == [
        window[0] <= k < window[1] for k in range(5)
    ]


@pytest.mark.parametrize("kept", [0, 2])
def test_half_precision(kept: int) -> None:
    """An fp16 UNet through 7 steps: as near to the fp32 graph of equal weights as one fp16 graph is."""
    half, full = tiny_policy(steps=7, dtype=torch.float16), tiny_policy(steps=7)
    half_precision.put_weights(full, half)
    got, _ = gradient_of(make(Draft, draft(last_steps=7), half, kept_steps=kept), half, round_of(half, IMAGES))
    plain, exact = (truth_of(policy, round_of(policy, IMAGES), [0] * IMAGES) for policy in (half, full))
    half_precision.check([got], [plain], [exact])


@pytest.mark.parametrize("make_policy", [tiny_stable_diffusion, tiny_sdxl])
def test_half_precision_of_text_models(make_policy: Any) -> None:
    """fp16 LoRA through 5 guided steps, an fp32 VAE after them: as near to fp32 as one fp16 graph, whose loss is scaled
    by 64 to stay in fp16's range."""
    half, full = (
        make_policy(steps=5, eta=1.0, guidance=3.0, dtype=dtype, vae_dtype=torch.float32, adapter=AdapterConfig(rank=2))
        for dtype in (torch.float16, torch.float32)
    )
    off_the_start(half)
    half_precision.put_weights(full, half)
    rounds = [round_of(policy, IMAGES) for policy in (half, full)]
    got, _ = gradient_of(make(Draft, draft(last_steps="all"), half), half, rounds[0])
    plain = truth_of(half, rounds[0], [0] * IMAGES, scale=64.0) / 64
    half_precision.check([got], [plain], [truth_of(full, rounds[1], [0] * IMAGES)])


def test_straight_through_ignores_clipping_in_the_gradient_alone() -> None:
    """Same images bit for bit; the gradient is that of a chain whose clamp has slope 1 everywhere."""
    exact, straight = (
        tiny_policy(steps=4, eta=0.0, clip=True, clip_gradient=how) for how in ("exact", "straight_through")
    )
    rounds = [round_of(policy, IMAGES) for policy in (exact, straight)]
    (a, by_exact), (b, by_straight) = (
        gradient_of(make(Draft, draft(last_steps=4), policy), policy, this_round)
        for policy, this_round in zip((exact, straight), rounds, strict=True)
    )
    assert by_exact["loss"] == by_straight["loss"]
    assert distance(b, truth_of(straight, rounds[1], [0] * IMAGES)) <= 1e-5
    assert distance(a, truth_of(exact, rounds[0], [0] * IMAGES)) <= 1e-5
    assert distance(a, b) > 0.1


def live_peak(steps: int, kept: int = 0, **sampler: Any) -> int:
    policy = tiny_policy(steps=steps, eta=0.0, side=16, **sampler)
    method = make(Draft, draft(last_steps="all"), policy, kept_steps=kept)
    this_round = round_of(policy, 4)
    with Ledger() as ledger:
        gradient_of(method, policy, this_round)
    return ledger.peak_bytes


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_flat_in_the_number_of_steps(checkpointing: bool) -> None:
    """Live bytes at 50 steps minus at 2: the 48 stored latents more, and 1 % of them."""
    few, many = live_peak(2, checkpointing=checkpointing), live_peak(50, checkpointing=checkpointing)
    stored = 48 * 4 * 16 * 16 * 4  # steps, images, pixels, bytes
    assert 0 < many - few <= 1.01 * stored
    if not checkpointing:
        assert live_peak(4, kept=4) > 2 * live_peak(4)  # the ledger does see graphs that are kept


def test_costate_norms_and_clipping() -> None:
    """Norms in the metrics are those of autograd's d loss_i / d x_k; a clip bounds them, and a loose one is exact."""
    policy = tiny_policy(steps=4, eta=0.0)
    this_round = round_of(policy, IMAGES)
    plain, metrics = gradient_of(make(Draft, draft(last_steps=4), policy), policy, this_round)
    x, states = this_round.batch.noise.initial(this_round.batch.images), []
    for step in range(4):
        x = policy.mean(x.requires_grad_(), [step] * IMAGES)
        states.append(x)
    loss = -waves().parts[0].reward(policy.decode(x), []).sum()
    for step, costate in enumerate(torch.autograd.grad(loss, states)):
        truth = float(costate.flatten(1).norm(dim=1).square().mean().sqrt())
        assert metrics["costate_norm"][step] == pytest.approx(truth, rel=1e-4)
    assert all(norm > 0 for norm in metrics["step_gradient_norm"])
    bound = metrics["costate_norm"][0] / 2
    clipped, bounded = gradient_of(make(Draft, draft(last_steps=4, costate_clip=bound), policy), policy, this_round)
    assert max(bounded["costate_norm"]) <= bound * 1.0001 and distance(clipped, plain) > 1e-2
    loose, _ = gradient_of(make(Draft, draft(last_steps=4, costate_clip=1e6), policy), policy, this_round)
    assert torch.equal(loose, plain)


def test_one_steps_gradient_norm() -> None:
    """With one differentiated step and one micro-batch the step's norm is the gradient's."""
    policy = tiny_policy(steps=3)
    got, metrics = gradient_of(make(Draft, draft(last_steps=1), policy), policy, round_of(policy, 4))
    assert metrics["step_gradient_norm"][:2] == [None, None]
    assert metrics["step_gradient_norm"][2] == pytest.approx(float(got.norm()), rel=1e-5)


def test_same_round_same_bits() -> None:
    policy = tiny_policy(steps=5)
    method = make(Draft, draft(last_steps=5), policy, kept_steps=2)
    first = gradient_of(method, policy, round_of(policy, 5))[0]
    assert torch.equal(first, gradient_of(method, policy, round_of(policy, 5))[0])
    assert knobs().kept_steps == 0
