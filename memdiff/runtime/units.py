"""Units that people read."""

GIB = 2**30


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `1 h 12 min`, `2 d 3 h`: the two largest units that are not nothing."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return "{} h {} min".format(*divmod(minutes, 60))
    return "{} d {} h".format(*divmod(round(seconds / 3600), 24))
