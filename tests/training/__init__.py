"""A run's folder, processes, checkpoints and failures."""
