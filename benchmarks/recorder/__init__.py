"""Today's numbers, bit for bit, so that a change that should move none of them can be held to `==`.

    python -m benchmarks.recorder check     # runs every case again and compares with record/
    python -m benchmarks.recorder write     # after a change that should move numbers: a new record

`cases` the table of runs: a row is a name, what it goes through, and what differs from a base recipe
`compositions` the same for what the planner composes and what a whole simulated round takes
`models`, `rewards_of_cases` what the cases need besides: small pipelines from seeds, a differentiable reward
`adapter` all access to the inside of memdiff: the only file that a change of its inside has to touch
`worker` runs cases in one process, one a rank
`kept` the committed run and models, which must go on resuming, loading and sampling
`plans` `memdiff plan` of the recipes that ship
`summary` a tensor as a checksum and a few of its numbers
`processes` starts workers on a fixed set of instructions, so that processors agree
`compare` two records side by side
"""
