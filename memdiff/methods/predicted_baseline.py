"""A baseline of each image and step: the reward of the image that the model predicts there.

    A_ik = A_i - c_ik (V_ik - mean_j V_jk) / s,        V_ik = R(decode(x0_hat(x_ik)))

with A_i the advantage that all of an image's steps would share, s the std that it was divided by (1 where it was not),
and R the total reward as it stands this round: linear in the parts' scores, a share part with this round's slope.

V_ik depends on x_ik alone and log p(x_{k+1} | x_ik) has mean zero given x_ik, so what is taken off changes no
expectation: a control variate (Greensmith, Bartlett and Baxter 2004, section 3). Its coefficient c_ik, in 0..1, is the
least-squares one of the other images' rewards and values. These are centred with means over all images, its own among
them, so that an image has a say of order 1/N in its own coefficient's terms and of 1/N^2 in the gradient's expectation.
Towards the end of a chain the prediction is the image, V explains the reward, and the noise of steps that can't change
it any more is gone.

It asks the model once more and the reward as many times as there are steps: for rewards that cost less than a step.

Shapes: n images of this rank, N over all ranks, K steps, P parts.
"""

from collections.abc import Sequence

import torch

from memdiff.chain.trajectory import Trajectory
from memdiff.memory.knobs import Knobs
from memdiff.memory.offload import decoding
from memdiff.methods.experience import Round
from memdiff.models.batches_that_fit import batches_that_fit
from memdiff.models.policy import Policy, decode_what_fits
from memdiff.rewards.weighted_sum import WeightedReward, refuse_non_finite
from memdiff.runtime.ranks import Ranks

TINY = 1e-12


def predicted_rewards(
    policy: Policy,
    trajectory: Trajectory,
    this_round: Round,
    steps: Sequence[int],
    reward: WeightedReward,
    slopes: Sequence[float],
    ranks: Ranks,
    knobs: Knobs,
) -> torch.Tensor:
    """V over all ranks' images, one row a step of `steps`: rows N. Collective; no graph is made.

    RewardError where one is not finite.
    """
    value_rows = []
    for step in steps:

        def predict(padded: list[int], count: int, step: int = step) -> torch.Tensor:
            x_t_BCHW, _ = trajectory.transitions([(image, step) for image in padded])
            prompts = [this_round.batch.prompts[image] for image in padded]
            x_0_BCHW = policy.x0(x_t_BCHW, [step] * len(padded), prompts)
            this_round.advance(count)
            return x_0_BCHW[:count]

        images = range(trajectory.images)
        predicted = list(batches_that_fit(policy, "denoiser", images, knobs.rollout_batch, predict))
        with decoding(policy, knobs):
            raw_Pn = reward.raw(decode_what_fits(policy, torch.cat(predicted)), this_round.batch.prompts)
        value_rows.append(raw_Pn.new_tensor(list(slopes)) @ raw_Pn)
    values_KN = ranks.gather(torch.stack(value_rows), this_round.batch.num_images, dim=1)
    refuse_non_finite(values_KN, [f"total of what step {step} predicts" for step in steps])
    return values_KN


def step_advantages(
    advantages_N: torch.Tensor, rewards_N: torch.Tensor, values_KN: torch.Tensor, *, spread: float
) -> torch.Tensor:
    """A_ik: K N. `spread` is s, what A was divided by; V is in the unit of the rewards, as A s is."""
    centered_N = rewards_N - rewards_N.mean()
    values_KN = values_KN - values_KN.mean(dim=1, keepdim=True)
    products_KN, squares_KN = values_KN * centered_N, values_KN.square()
    others_KN = squares_KN.sum(dim=1, keepdim=True) - squares_KN
    slope_KN = (products_KN.sum(dim=1, keepdim=True) - products_KN) / others_KN.clamp(min=TINY)
    coefficient_KN = torch.where(others_KN > TINY, slope_KN, 0.0).clamp(0, 1)
    return advantages_N - coefficient_KN * values_KN / spread
