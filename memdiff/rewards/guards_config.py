"""Recipe section `guards`. No torch."""

from pydantic import Field

from memdiff.runtime.section import Float, Section


class GuardsConfig(Section):
    """Alarms against over-optimisation: a line on the screen, in metrics.jsonl (`alarms`) and in the report."""

    held_out_drop: Float | None = Field(
        default=0.5,
        gt=0,
        le=10**6,
        description="Alarm where a held-out reward has fallen by more than this many standard deviations of its scores "
        "at round 0, while the trained reward has risen. None: never.",
    )
    diversity: Float | None = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Alarm where images differ by less than this share of round 0's. None: never.",
    )
    stop: bool = Field(
        default=False, description="True: an alarm ends the run in order, saved, instead of warning only."
    )
