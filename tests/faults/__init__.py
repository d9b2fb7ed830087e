"""Trials of what a run survives: `python -m tests.faults` (make faults), `--soak` for the long ones (make soak)."""
