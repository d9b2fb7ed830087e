"""Health of the optimization, and whatever else a method reports.

Shapes: R rounds, K steps of the sampling chain.
"""

import numpy as np

from memdiff.reporting import plots
from memdiff.reporting.folder import Row, RunRecord, column, keys_with, known
from memdiff.reporting.panel import Panel, make_panel, metric_panel
from memdiff.reporting.sections import phase_keys

MOST_OTHER_METRICS = 40
LOG_BASES = {"grad_norm": 10, "loss_scale": 2, "lr": 10}
STEP_NORM = "step_gradient_norm"
DIAGNOSTICS = (
    (
        "grad_norm",
        "gradient norm",
        "Length of the whole gradient before clipping. Should stay within an order of magnitude; a steady climb "
        "announces divergence, a spike one bad round.",
    ),
    (
        "loss_scale",
        "loss scale",
        "The power of two that keeps fp16 gradients in range. Should move by small factors; a fall towards 1 means "
        "gradients that overflow.",
    ),
    (
        "skipped",
        "skipped updates",
        "Updates that were not applied because a gradient was not finite. Should be zero throughout.",
    ),
    (
        "advantage_std",
        "advantage std",
        "Spread of the advantages. Near zero there is nothing to learn from: all images are rewarded alike.",
    ),
    (
        "clip_fraction",
        "share of ratios clipped",
        "Share of importance ratios that the clip cut off. Should be small; near one, updates are too large.",
    ),
    (
        "approx_kl",
        "KL (nats)",
        "Approximate divergence of the updated policy from the one that sampled. Should stay small and flat.",
    ),
    (
        "log_prob_mean",
        "log-probability (nats)",
        "Mean log-probability of a step of the chain. Drifts slowly; a jump means a changed policy or broken replay.",
    ),
    (
        "log_prob_sum",
        "log-probability (nats)",
        "Log-probability of a whole chain, summed over its steps. Same reading as the mean.",
    ),
    (
        "diversity_pixel",
        "pixel difference",
        "Root mean square difference of a pixel (0 to 1) between two images of the round. Should stay near its "
        "start; a steady fall means images that grow alike.",
    ),
    (
        "diversity_feature",
        "feature distance",
        "Mean distance between two images of the round in the features of a reward's network. Should stay near its "
        "start.",
    ),
    ("lr", "learning rate", "The optimizer's learning rate: shows warm-up and decay as configured."),
)
SHOWN = {"round", "update", "images", "reward_mean", "reward_std", "images_in_round", "peak_bytes"} | {
    "evaluate/reward_mean",
    "evaluate/images",
    "evaluate/best",
}
SHOWN_PREFIXES = ("reward/", "reward_std/", "share/", "evaluate/reward/", "evaluate/reward_std/", "evaluate/share/")


def diagnostic_panels(run: RunRecord) -> list[Panel]:
    """Health of the optimization, one plot a quantity that the run reports."""
    panels = []
    for key, unit, caption in DIAGNOSTICS:
        if key == "loss_scale" and set(known(column(run.training, key))) <= {1.0}:
            continue  # in fp32 and bf16 there is none
        panels += metric_panel(run.training, key, unit, caption, log_base=LOG_BASES.get(key))
    return panels + step_norm_panels(run.training)


def step_norm_panels(rows: list[Row]) -> list[Panel]:
    """Gradient norm of each step of the chain: chosen rounds as lines, all rounds as a heat map."""
    rounds, norms_RK = step_norms(rows)
    if not len(rounds) or not np.isfinite(norms_RK).any():
        return []
    drawn = np.flatnonzero(np.isfinite(norms_RK).any(axis=1)).tolist()
    chosen = sorted({drawn[0], drawn[len(drawn) // 2], drawn[-1]})
    panels = [
        make_panel(
            "Gradient norm by step",
            "Which steps of the chain the policy learns from. Gaps are steps without a density. With uniform step "
            "weights the last steps peak, where the noise is smallest; balanced ones are near level.",
            plots.step_lines(norms_RK[chosen], range(len(chosen)), "gradient norm"),
            list(norms_RK[chosen[-1]]),
            legend=tuple((colour, f"round {rounds[index]:.0f}") for colour, index in enumerate(chosen)),
        )
    ]
    if len(rounds) >= 3 and (norms_RK > plots.SMALLEST_POSITIVE).any():
        panels.append(
            make_panel(
                "Gradient norm by step and round",
                "All rounds side by side, early steps on top. Should keep its pattern; a bright column is a bad "
                "round, a row that lights up a step that takes over.",
                plots.heat_map(rounds, norms_RK, "gradient norm"),
                [],
            )
        )
    return panels


def other_panels(run: RunRecord) -> tuple[list[Panel], int]:
    """Numbers that a method adds under its own names, and how many of them are beyond what a page should hold."""
    shown = SHOWN | {key for key, _, _ in DIAGNOSTICS} | set(phase_keys(run.training))
    rows = {key: run.training for key in keys_with(run.training, "") if not key.startswith("evaluate/")}
    rows |= dict.fromkeys(keys_with(run.evaluations, "evaluate/"), run.evaluations)
    keys = [key for key in rows if key not in shown and not key.startswith(SHOWN_PREFIXES)]
    panels = []
    for key in keys[:MOST_OTHER_METRICS]:
        caption = "Reported by the method under this name; look for jumps and slow drifts."
        panels += metric_panel(rows[key], key, "value (as reported)", caption, points=key.startswith("evaluate/"))
    return panels, max(0, len(keys) - MOST_OTHER_METRICS)


def step_norms(rows: list[Row]) -> tuple[list[float], np.ndarray]:
    """Rounds and norms_RK of the rows that report them; NaN for a step without density and for shorter chains."""
    listed = [row for row in rows if isinstance(row.get(STEP_NORM), list) and row[STEP_NORM]]
    length = max((len(row[STEP_NORM]) for row in listed), default=0)
    norms_RK = np.full((len(listed), length), np.nan)
    for index, row in enumerate(listed):
        norms_RK[index, : len(row[STEP_NORM])] = known_or_gap(row[STEP_NORM])
    return column(listed, "round"), norms_RK


def known_or_gap(values: list[object]) -> list[float]:
    """Numbers of a JSON list, NaN for anything else."""
    return column([{"value": value} for value in values], "value")
