"""What needs CUDA. Skipped, with that reason, where there is none."""
