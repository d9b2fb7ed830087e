"""What SFT-PG's critic says of digits seen through more and less noise: `python -m benchmarks.studies.critic_noise`.

Trains the critic of launch/recipes/digits_sft_pg.yaml alone for 200 steps on 1,000 images of DDPM-10 and the real
training digits, with the loss of `memdiff.methods.critic_phase` whose value function is the mean cost, at ten times its
rate there. On 1,000 other images and the 360 held-out digits, each seen through eight draws: how often a made image
costs more than a real one, and how far apart the costs of made 5-9 and 0-4 are in their standard deviations: the
untrained model draws too few of 5-9, so that a critic which knows digits puts theirs lower.

Writes results/critic_noise.json and results/critic_noise.md. Reads the images that benchmarks.studies.sft_pg keeps.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.provenance import of_machine
from benchmarks.studies.sft_pg import RECIPE, ROOT, images_of
from benchmarks.studies.written import write_study
from memdiff.digits.classifiers import load_classifier
from memdiff.digits.scans import is_minority, real_digits
from memdiff.methods.critic import Critic
from memdiff.methods.learner import start
from memdiff.methods.sft_pg_config import SftPgConfig
from memdiff.recipe.reading import read_recipe

STEPS, BATCH, DRAWS, CHAIN = 200, 64, 8, 10
LEARNT_FROM = 1000  # made images; the others are judged


def seen(images_NCHW: torch.Tensor, noise: float) -> torch.Tensor:
    """The images through one draw."""
    return images_NCHW + noise * torch.randn_like(images_NCHW)


@torch.no_grad()
def costs(critic: Critic, images_NCHW: torch.Tensor, noise: float) -> torch.Tensor:
    """Means over the draws: N."""
    return torch.stack([critic(seen(images_NCHW, noise)) for _ in range(DRAWS)]).mean(dim=0)


def trained(config: SftPgConfig, made_NCHW: torch.Tensor, real_NCHW: torch.Tensor, noise: float) -> Critic:
    """The critic after its steps; the last term of its loss pulls every cost to their mean, once for each step."""
    critic = start(Critic(1, config.critic.widths), 0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=10 * config.critic.learning_rate)
    for _ in range(STEPS):
        made_B, real_B = (
            critic(seen(images_NCHW[torch.randint(len(images_NCHW), (BATCH,))], noise))
            for images_NCHW in (made_NCHW, real_NCHW)
        )
        loss = real_B.mean() - made_B.mean() + CHAIN * made_B.var(correction=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic


def main() -> None:
    """A critic for each strength of noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_sft_pg")
    options = parser.parse_args()
    machine, recipe = of_machine(), read_recipe(RECIPE)
    assert isinstance(recipe.method, SftPgConfig)
    made_NCHW = images_of(recipe.model, recipe.sampler, 2000, options.runs / "DDPM-10.pt")
    (real_NCHW, _), (held_out_NCHW, _) = real_digits("train"), real_digits("held_out")
    judged_NCHW = made_NCHW[LEARNT_FROM:]
    with torch.no_grad():
        minority_N = is_minority(load_classifier("judge")(judged_NCHW).argmax(dim=1))
    rows, lines = [], ["| noise | made above real | 5-9 less 0-4, in std |\n|---|---|---|\n"]
    for noise in options.noise:
        torch.manual_seed(0)
        critic = trained(recipe.method, made_NCHW[:LEARNT_FROM], real_NCHW, noise)
        made_N, real_N = costs(critic, judged_NCHW, noise), costs(critic, held_out_NCHW, noise)
        above = float((made_N[:, None] > real_N).double().mean())
        gap = float((made_N[minority_N].mean() - made_N[~minority_N].mean()) / made_N.std())
        rows.append({"noise": noise, "made_above_real": round(above, 4), "minority_gap": round(gap, 3)})
        lines.append(f"| {noise:g} | {above:.3f} | {gap:+.2f} |\n")
    black = {
        name: round(float((images_NCHW == 0).double().mean()), 3)
        for name, images_NCHW in (("real", real_NCHW), ("made", made_NCHW))
    }
    write_study(
        "critic_noise",
        "python -m benchmarks.studies.critic_noise",
        machine,
        {"pixels_exactly_black": black},
        {"critics": rows},
        "".join(lines),
    )


if __name__ == "__main__":
    main()
