"""`memdiff doctor`: what this machine has, what memdiff needs, and what to do about the difference."""
