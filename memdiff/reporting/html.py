"""`report.html`: one self-contained page about a run. What it does about hostile strings is page.py's."""

from pathlib import Path

from memdiff.reporting import comparison, diagnostics, sections, tables
from memdiff.reporting.folder import RunRecord, read_folder
from memdiff.reporting.headline import figures, flatten, heading, status_text, summary
from memdiff.reporting.page import HERE, render_page, write_page
from memdiff.reporting.samples import pairs, sample_pictures

MOST_ENVIRONMENT_ROWS = 200
MOST_ALARMS = 100


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write `report.html` into a run folder, or `out`, and return its path; it appears whole or not at all.

    Raises ConfigError if the folder is no run, has no row of a round yet, or can't be written to.
    """
    return write_page(render(read_folder(run)), out or run / "report.html")


def write_comparison(runs: list[Path], out: Path | None = None) -> Path:
    """Write a page with several runs side by side to `out` (None: ./comparison.html). Raises ConfigError."""
    page = comparison.render([read_folder(run) for run in comparison.checked(runs)])
    return write_page(page, out or Path("comparison.html"))


def render(run: RunRecord) -> str:
    """The page as a string."""
    notes = list(run.notes)
    health, (others, left_out) = diagnostics.health(run), diagnostics.others(run)
    if left_out:
        notes.append(f"{left_out} more metrics are in metrics.jsonl and not shown.")
    described = flatten(run.status.get("environment"))
    samples, evolution = sample_pictures(run, notes)
    return render_page(
        HERE / "page.html.j2",
        name=run.path.resolve().name,
        heading=heading(run),
        state=status_text(run, "state"),
        message=status_text(run, "message"),
        summary=summary(run, described),
        tiles=figures(run),
        rewards=sections.reward_panels(run),
        evaluations=sections.evaluation_panels(run),
        shares=sections.share_panels(run),
        diversity=diagnostics.diversity_panels(run),
        diagnostics=diagnostics.changing(run, health) + diagnostics.step_norm_panels(run.training),
        times=sections.time_panels(run),
        memory=sections.memory_panels(run),
        others=diagnostics.changing(run, others),
        constants=diagnostics.unchanging(run, [*health, *others]),
        phases=tables.phase_table(run.training),
        plan=tables.plan_table(run),
        items=tables.item_table(run),
        samples=samples,
        pairs=pairs(run),
        evolution=evolution,
        judge=tables.judge_table(run.judge),
        alarms=tables.alarm_table(run)[-MOST_ALARMS:],
        events=tables.event_table(run),
        recipe=run.recipe_text,
        environment=described[:MOST_ENVIRONMENT_ROWS],
        notes=notes,
    )
