"""When a run will end: rounds and evaluations still to come, each at the seconds that it usually takes."""

import time
from collections.abc import Callable, Sequence

DAY = 24 * 3600
ENOUGH_SECONDS, ENOUGH_SHARE = 20.0, 0.05  # of a round, before its pace is said: its first pieces warm up


def never(round_number: int) -> bool:
    """Whether a round is followed by an evaluation, in a run without any."""
    del round_number
    return False


class Pace:
    """Seconds that a run still takes, by what this process measured; nothing where that is unknown.

    A round takes the mean of those before it, a checkpoint after it included, and an evaluation the mean of its own
    kind. The first of either kind is left out as soon as there is another: caches and kernels are made in it.
    """

    def __init__(
        self,
        rounds: int,
        evaluated_after: Callable[[int], bool] = never,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds, self._evaluated_after, self._now = rounds, evaluated_after, now
        self._seconds: list[float] = []  # of each round
        self._evaluations: list[float] = []  # seconds of each
        self._counted_until = 0.0
        self._round, self._steps, self._done = 0, 0, 0
        self._in_round, self._awaits_evaluation = False, False

    def begin(self, round_number: int, steps: int) -> None:
        """A round of so many image-steps starts."""
        self._end_of_what_follows_a_round()
        self._round, self._steps, self._done = round_number, steps, 0
        self._in_round, self._awaits_evaluation = True, self._evaluated_after(round_number)

    def advance(self, steps: int) -> None:
        """So many of them are done."""
        self._done += steps

    def finish(self) -> None:
        """The round has ended; its evaluation and its checkpoint have not."""
        self._seconds.append(self._since())
        self._in_round, self._done = False, 0

    def begin_evaluation(self) -> None:
        """An evaluation on fixed noise starts."""
        self._end_of_what_follows_a_round()

    def finish_evaluation(self) -> None:
        """The evaluation that began last has ended."""
        self._evaluations.append(self._since())
        self._awaits_evaluation = False

    @property
    def known(self) -> bool:
        """Whether enough was seen to say a pace."""
        return bool(self._seconds) or (
            self._in_round
            and self._done >= ENOUGH_SHARE * self._steps
            and self._now() - self._counted_until >= ENOUGH_SECONDS
        )

    @property
    def seconds_per_step(self) -> float:
        """Of an image-step: of the usual round, before the first has ended of what was done of it."""
        return self._round_seconds() / max(1, self._steps)

    @property
    def seconds_left(self) -> float:
        """Until the last round and its evaluation have ended."""
        rounds = self._rounds - self._round
        if self._in_round:
            rounds += 1 - self._done / max(1, self._steps)
        evaluations = sum(map(self._evaluated_after, range(self._round + 1, self._rounds + 1)))
        evaluations += self._awaits_evaluation
        return rounds * self._round_seconds() + evaluations * usual(self._evaluations)

    def _round_seconds(self) -> float:
        if self._seconds:
            return usual(self._seconds)
        return (self._now() - self._counted_until) * self._steps / self._done if self._done else 0.0

    def _end_of_what_follows_a_round(self) -> None:
        """A checkpoint and the like belong to the round before them."""
        seconds = self._since()
        if self._seconds:
            self._seconds[-1] += seconds

    def _since(self) -> float:
        before, self._counted_until = self._counted_until, self._now()
        return self._counted_until - before


def usual(seconds: Sequence[float]) -> float:
    """The mean without the first, which warms up; of one that one, of none zero."""
    counted = seconds[1:] or seconds
    return sum(counted) / len(counted) if counted else 0.0


def clock_time(seconds_left: float) -> str:
    """When it will be, so many seconds from now: with the weekday where it is not today, with the date after a week."""
    end = time.localtime(time.time() + seconds_left)
    today = end.tm_yday == time.localtime().tm_yday and seconds_left < DAY
    return time.strftime("%H:%M" if today else "%a %H:%M" if seconds_left < 6 * DAY else "%d %b %H:%M", end)
