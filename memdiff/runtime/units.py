"""Units that people read."""

GIB = 2**30


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `1 h 12 min`, `2 d 3 h`, `2 h`: the two largest units that are not nothing."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if seconds < 3599.5:
        return _two(round(seconds), 60, "min", "s")
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return _two(minutes, 60, "h", "min")
    return _two(round(seconds / 3600), 24, "d", "h")


def _two(count: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(count, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def counted(count: int, word: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
