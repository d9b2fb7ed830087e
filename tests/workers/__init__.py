"""Programs that run as one rank of several."""
