"""Measurements of memory and time: `python -m benchmarks --help`; what each suite shows is in README.md."""
