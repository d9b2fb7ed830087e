"""The house itself: rooms, harness, recorder, benchmarks."""
