"""The report's tables: phases, alarms, events, the judge's counts, the plan beside what was measured."""

import math
import statistics

from memdiff.reporting import sections
from memdiff.reporting.folder import Row, RunRecord, column, known, number
from memdiff.reporting.headline import total_seconds
from memdiff.runtime.units import GIB, duration

MOST_EVENTS = 100
LAST = ("complete", "stopped")  # of a round's events
JUDGE_ROWS = (
    ("num_images", "images judged"),
    ("minority_share", "share of digits 5 to 9"),
    ("recognised_share", "recognised share"),
    ("frechet_distance", "Fréchet distance"),
)


def phase_table(rows: list[Row]) -> list[tuple[str, str, str, str]]:
    """Phase, total, share of the time, median of a round."""
    total = total_seconds(rows)
    table = []
    for key in sections.phase_keys(rows):
        values = known(column(rows, key))
        spent = math.fsum(values)
        share = f"{100 * spent / total:.1f} %" if total > 0 else "n/a"
        table.append((sections.phase_name(key), duration(spent), share, duration(statistics.median(values))))
    return table


def alarm_table(run: RunRecord) -> list[tuple[int, str]]:
    """Round and text of every alarm that a guard raised."""
    rows = {row["round"]: row.get("alarms") for row in (*run.evaluations, *run.training)}
    alarms_by_round = [(number, alarms) for number, alarms in sorted(rows.items()) if isinstance(alarms, list)]
    return [(number, alarm) for number, alarms in alarms_by_round for alarm in alarms if isinstance(alarm, str)]


def event_table(run: RunRecord) -> list[tuple[int, str, str, str]]:
    """Round, event, words and time of all that happened beside the rounds, in their order."""
    table = [(round_number, kind, text, time) for round_number, kind, text, time in run.events]
    redone = 0.0  # counted since the process started, which a resumed run does anew
    for row in run.training:
        count = number(row.get("pieces_redone"))
        if count > redone:
            more = count - redone
            words = "1 piece overflowed and was" if more == 1 else f"{more:.0f} pieces overflowed and were"
            table.append((row["round"], "redone", f"{words} made again", ""))
        redone = 0.0 if math.isnan(count) else count
    table += [(round_number, "alarm", alarm, "") for round_number, alarm in alarm_table(run)]
    return sorted(table, key=lambda event: (event[0], event[1] in LAST))[-MOST_EVENTS:]


def judge_table(judge: Row) -> list[tuple[str, str, str]]:
    """What an independent judge counted before and after training, shares with their 95 % interval."""
    sides = [side if isinstance(side, dict) else {} for side in (judge.get("before"), judge.get("after"))]
    table = [(label, *(judge_cell(side, key) for side in sides)) for key, label in JUDGE_ROWS]
    return [(label, before, after) for label, before, after in table if (before, after) != ("n/a", "n/a")]


def judge_cell(side: Row, key: str) -> str:
    """One number of the judge as text; n/a where it is missing."""
    value = number(side.get(key))
    if math.isnan(value):
        return "n/a"
    if key == "num_images":
        return f"{value:,.0f}"
    if not key.endswith("_share"):
        return f"{value:.4g}"
    low, high = number(side.get("share_low")), number(side.get("share_high"))
    interval = f" ({100 * low:.1f} to {100 * high:.1f})" if key == "minority_share" and low <= high else ""
    return f"{100 * value:.1f} %{interval}"


def plan_table(run: RunRecord) -> list[tuple[str, str]]:
    """What the plan said beside what was measured; empty where there was no plan."""
    plan = run.plan
    planned, measured = number(plan.get("peak_bytes")), max(known(column(run.training, "peak_bytes")), default=math.nan)
    if math.isnan(planned):
        return []
    table = [("planned peak", _gib(planned) + _of(plan)), ("measured peak", _gib(measured))]
    if planned > 0 and not math.isnan(measured):
        table.append(("measured against planned", f"{100 * measured / planned - 100:+.1f} %"))
    table.append(("budget of the card", _gib(number(plan.get("budget_bytes")))))
    return [(name, text) for name, text in table if not text.startswith("n/a")]


def item_table(run: RunRecord) -> list[tuple[str, str]]:
    """What the planned peak consists of, the largest first."""
    items = run.plan.get("items")
    if not isinstance(items, dict):
        return []
    sizes = {name: number(size) for name, size in items.items()}
    known_sizes = {name: size for name, size in sizes.items() if size > 0}
    return [(name, _gib(size)) for name, size in sorted(known_sizes.items(), key=lambda item: -item[1])]


def _of(plan: Row) -> str:
    live, allowance, phase = number(plan.get("live_bytes")), number(plan.get("allowance_bytes")), plan.get("peak_phase")
    apart = "" if math.isnan(live + allowance) else f": {live / GIB:.2f} live and {allowance / GIB:.2f} allowance"
    return apart + (f", in {phase}" if isinstance(phase, str) else "")


def _gib(size: float) -> str:
    return "n/a" if math.isnan(size) else f"{size / GIB:.2f} GiB"
