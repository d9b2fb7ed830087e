"""What the plan says is what a run takes."""
