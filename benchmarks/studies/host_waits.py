"""How often the host waits for the GPU in an update of the shipped recipes. Simulated: counted on fake tensors.

    python -m benchmarks.studies.host_waits        # writes results/host_waits.json and host_waits.md

`before` are the counts of commit 9f45eb0, by the same counter, before checks were noted on the device: then each phase
of a round waited twice more, which is not in them.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.cases.plan import RESIDENT_ONE
from benchmarks.measures.host_waits import measure_host_waits
from benchmarks.provenance import of_machine
from benchmarks.studies.written import write_study

FOUR: Mapping[str, Any] = {**RESIDENT_ONE, "vae_checkpointing": "layers", "micro_batch": 4, "rollout_batch": 4}
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "AlignProp, recomputed": (
        "sd15_alignprop_t4", {"method": {"truncation": "fixed"}, "sampler": {"eta": 1.0}, "memory": FOUR},
    ),
    "REINFORCE, one pass": ("sd15_ddpo_t4", {"method": {"inner_updates": 1}, "memory": {**FOUR, "one_pass": True}}),
    "REINFORCE, replayed": ("sd15_ddpo_t4", {"method": {"inner_updates": 1}, "memory": FOUR}),
}  # fmt: skip
STEPS = 50
BEFORE: Mapping[str, tuple[int, int, int]] = {  # a step, a micro-batch, a round
    "AlignProp, recomputed": (7, 286, 15),
    "REINFORCE, one pass": (3, 3, 21),
    "REINFORCE, replayed": (11, 1, 20),
}


def main() -> None:
    """Counts every case and writes all."""
    machine, rows = of_machine(), []
    for name, (recipe, changes) in CASES.items():
        settings = {"recipe_file": f"launch/recipes/{recipe}.yaml", "changes": changes, "precision": "fp16"}
        figures = measure_host_waits(settings)
        rows.append({"case": name, "recipe": recipe, **figures, "before": BEFORE[name]})
        print(name, {key: value for key, value in figures.items() if key != "lines"}, flush=True)
    write_study(
        "host_waits", "python -m benchmarks.studies.host_waits", machine,
        {"waits_of_50_steps": {row["case"]: waits_of(row) for row in rows}}, {"rows": rows}, table(rows),
    )  # fmt: skip


def waits_of(row: Mapping[str, Any]) -> int:
    """Of one micro-batch of 50 steps."""
    return row["waits_a_micro_batch"] + STEPS * row["waits_a_step"]


def table(rows: list[dict[str, Any]]) -> str:
    """What is counted now beside what was before."""
    lines = [
        "| 4 images a micro-batch | a step | a micro-batch | a round besides | a micro-batch of 50 steps | before |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        step, micro_batch, _ = row["before"]
        lines.append(
            f"| {row['case']} | {row['waits_a_step']} | {row['waits_a_micro_batch']} | {row['waits_a_round']} "
            f"| {waits_of(row)} | {micro_batch + STEPS * step} |"
        )
    return "\n".join(lines) + (
        "\n\nSimulated: operators of the training code on fake tensors, Stable Diffusion 1.5 at 512 x 512. A replay "
        "has a piece a step here, each asked before it is added. What a wait costs on a card is not measured.\n"
    )


if __name__ == "__main__":
    main()
