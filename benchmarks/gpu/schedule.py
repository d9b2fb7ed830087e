"""Which rows fit into the minutes, and which memory rows fit beside each other on the card. No torch."""

from collections.abc import Iterable, Sequence

from benchmarks.gpu.rows import IMPORT_S, GpuRow

SHARE_OF_CARD = 0.9  # that rows side by side may fill; each has a context of its own beside its cap
AT_ONCE = 10  # processes beside each other: their own host memory, and the machine's cores


def side_by_side(rows: Sequence[GpuRow], card_gib: float, at_once: int = AT_ONCE) -> list[list[GpuRow]]:
    """Groups, each of which the card holds at once; in order, a row that fits into an earlier group goes there."""
    groups: list[list[GpuRow]] = []
    for row in rows:
        for group in groups:
            if len(group) < at_once and sum(one.gib for one in group) + row.gib <= SHARE_OF_CARD * card_gib:
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def group_seconds(group: Iterable[GpuRow]) -> float:
    """Of rows side by side: the longest."""
    return max((row.estimate_s for row in group), default=0.0)


def fitting(
    rows: Sequence[GpuRow], seconds: float, card_gib: float, *, peers: bool
) -> tuple[list[GpuRow], list[GpuRow]]:
    """(what is measured, what is left out) in so many seconds. A row that doesn't fit leaves its time to later ones.

    One process's import comes first; those of the others go on behind the rows before them.
    """
    chosen: list[GpuRow] = []
    for row in rows:
        if row.kind == "peers" and not peers:
            continue
        if IMPORT_S + expected_seconds([*chosen, row], card_gib) <= seconds:
            chosen.append(row)
    return chosen, [row for row in rows if row not in chosen]


def expected_seconds(rows: Sequence[GpuRow], card_gib: float) -> float:
    """Rows alone one after the other, memory rows in their groups."""
    alone = sum(row.estimate_s for row in rows if row.kind != "memory")
    groups = side_by_side([row for row in rows if row.kind == "memory"], card_gib)
    return alone + sum(group_seconds(group) for group in groups)
