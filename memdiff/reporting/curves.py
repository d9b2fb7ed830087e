"""The reward over the rounds as a picture of its own, for the card of a model."""

import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memdiff.reporting.folder import Row, column, known
from memdiff.reporting.plots import COLOURS, STYLE

DOTS_PER_INCH = 120


def write_curves(rows: list[Row], file: Path) -> bool:
    """A PNG of the reward on the images of each round and on fixed noise; False where no two points are known."""
    training = [row for row in rows if row.get("round", 0) >= 1]
    evaluated = [row for row in rows if not math.isnan(column([row], "evaluate/reward_mean")[0])]
    lines = ((training, "reward_mean", "images of the round"), (evaluated, "evaluate/reward_mean", "fixed noise"))
    lines = [line for line in lines if len(known(column(line[0], line[1]))) >= 2]
    if not lines:
        return False
    with matplotlib.rc_context({**STYLE, "figure.facecolor": "white"}):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, (points, key, name) in enumerate(lines):
            style = "o-" if key.startswith("evaluate/") else "-"
            axes.plot(column(points, "round"), column(points, key), style, color=COLOURS[colour], label=name)
        axes.set_xlabel("round")
        axes.set_ylabel("reward (weighted sum of its parts)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.legend(frameon=False)
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return True
