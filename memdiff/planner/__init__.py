"""What a run will need before it runs. Above objectives, which it runs, and below what builds real ones."""
