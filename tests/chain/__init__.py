"""The mathematics of the chain: schedules, noise, trajectories, advantages."""
