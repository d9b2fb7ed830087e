"""Rewards, shares, time and memory of a run as plots: which columns, in which units, what one should see in them."""

import math

from memdiff.reporting import plots
from memdiff.reporting.folder import Row, RunRecord, best_round, column, keys_with, known, names_of, names_shown
from memdiff.reporting.panel import Panel, make_panel
from memdiff.reporting.plots import Series
from memdiff.runtime.units import GIB

WILSON_Z = 1.959964  # 97.5 % quantile of the normal distribution: a two-sided 95 % interval
PHASES = ("seconds_rollout", "seconds_reward", "seconds_train")


def wilson(share: float, total: float) -> tuple[float, float]:
    """95 % interval of a share of `total` yes / no decisions (Wilson 1927); NaN where there is none."""
    if not total >= 1 or not 0 <= share <= 1:
        return math.nan, math.nan
    z2 = WILSON_Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = WILSON_Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def reward_panels(run: RunRecord) -> list[Panel]:
    """The total reward and each part, with a band of one standard deviation over the images of a round."""
    caption = "Mean over the round's images; the band is one standard deviation of the images. "
    panels = _band_panel(
        run.training,
        "reward_mean",
        "reward_std",
        "Total reward",
        "weighted reward",
        caption + "Should rise and level off. A band that vanishes while the mean is low means images all alike.",
    )
    for name in names_shown(run, run.training):
        panels += _band_panel(
            run.training,
            f"reward/{name}",
            f"reward_std/{name}",
            f"Part: {name}",
            "raw reward",
            caption + "Raw value, before its weight: shows which part carries the total and which one pays for it.",
        )
    return panels


def evaluation_panels(run: RunRecord) -> list[Panel]:
    """Rewards on the same fixed noise every time; a star marks the best round."""
    best, shown = best_round(run.evaluations), names_shown(run, run.evaluations, "evaluate/")
    panels = []
    for key in ["evaluate/reward_mean", *(f"evaluate/reward/{name}" for name in shown)]:
        values = column(run.evaluations, key)
        rounds = column(run.evaluations, "round")
        if not known(values):
            continue
        total = key == "evaluate/reward_mean"
        stars = [pair for pair in zip(rounds, values, strict=True) if pair[0] == best and not math.isnan(pair[1])]
        panels.append(
            make_panel(
                "Total reward, fixed noise" if total else f"Part: {key.removeprefix('evaluate/reward/')}",
                "The same noise at every evaluation, so differences come from the weights alone. Round 0 is the base "
                "model; the star is the best round." + (" Should rise with the training reward." if total else ""),
                plots.line_plot(
                    [Series(rounds, values, points=True)],
                    "round",
                    "weighted reward" if total else "raw reward",
                    marks=stars,
                ),
                values,
            )
        )
    return panels


def share_panels(run: RunRecord) -> list[Panel]:
    """For each part that decides yes or no: the share of yes, with its 95 % Wilson interval."""
    panels = []
    for name in names_of(run, "share/"):
        training = _share_series(run.training, f"share/{name}", "images_in_round", colour=0, points=False)
        fixed = _share_series(run.evaluations, f"evaluate/share/{name}", "evaluate/images", colour=1, points=True)
        shown = [(0, "images of the round", training), (1, "fixed noise", fixed)]
        shown = [entry for entry in shown if known(list(entry[2].y))]
        panels.append(
            make_panel(
                f"Share: {name}",
                "Share of images that this part says yes to, with the 95 % Wilson interval of the count. A change is "
                "real where the intervals part; both curves should move together.",
                plots.line_plot([entry[2] for entry in shown], "round", "share of images (%)"),
                list(shown[0][2].y),
                unit=" %",
                legend=tuple((colour, text) for colour, text, _ in shown),
            )
        )
    return panels


def time_panels(run: RunRecord) -> list[Panel]:
    """Seconds of each phase, stacked, by round."""
    phases = phase_keys(run.training)
    if not phases:
        return []
    seconds = [column(run.training, key) for key in phases]
    totals = [math.fsum(known(list(values))) for values in zip(*seconds, strict=True)]
    return [
        make_panel(
            "Time of a round",
            "Where the seconds go. Bars should be even from round to round; the tallest colour is the one to make "
            "faster. The first round often carries compilation and warm-up.",
            plots.stacked_bars(column(run.training, "round"), seconds, "time (s)"),
            totals,
            unit=" s",
            legend=tuple((index, phase_name(key)) for index, key in enumerate(phases)),
        )
    ]


def memory_panels(run: RunRecord) -> list[Panel]:
    """Peak bytes by round, against what the plan foretold and what it was allowed."""
    peaks = [value / GIB for value in column(run.training, "peak_bytes")]
    if not known(peaks):
        return []
    levels, legend = [], [(0, "measured peak")]
    for colour, key, text in ((1, "peak_bytes", "planned peak"), (2, "budget_bytes", "budget")):
        planned = known(column([run.plan], key))
        if planned:
            levels.append((planned[0] / GIB, colour))
            legend.append((colour, text))
    return [
        make_panel(
            "Peak memory",
            "Most bytes held at once in each round. Should be flat from the second round on: a climb is a leak, a "
            "step a change of batch shape.",
            plots.line_plot(
                [Series(column(run.training, "round"), peaks)], "round", "peak (GiB)", levels=levels, from_zero=True
            ),
            peaks,
            unit=" GiB",
            legend=tuple(legend),
        )
    ]


def phase_keys(rows: list[Row]) -> list[str]:
    """The `seconds_...` columns: rollout, reward and train first, then at most three others."""
    keys = keys_with(rows, "seconds_")
    return [key for key in PHASES if key in keys] + [key for key in keys if key not in PHASES][:3]


def phase_name(key: str) -> str:
    """The phase that a metric times: `rollout` for `seconds_rollout`."""
    return key.removeprefix("seconds_")


def _share_series(rows: list[Row], key: str, total_key: str, *, colour: int, points: bool) -> Series:
    shares = column(rows, key)
    bounds = [wilson(share, total) for share, total in zip(shares, column(rows, total_key), strict=True)]
    return Series(
        column(rows, "round"),
        [100 * share for share in shares],
        low=[100 * low for low, _ in bounds],
        high=[100 * high for _, high in bounds],
        colour=colour,
        points=points,
    )


def _band_panel(rows: list[Row], key: str, std_key: str, heading: str, y_label: str, caption: str) -> list[Panel]:
    means, stds = column(rows, key), column(rows, std_key)
    if not known(means):
        return []
    series = Series(
        column(rows, "round"),
        means,
        low=[mean - std for mean, std in zip(means, stds, strict=True)],
        high=[mean + std for mean, std in zip(means, stds, strict=True)],
    )
    return [make_panel(heading, caption, plots.line_plot([series], "round", y_label), means)]
