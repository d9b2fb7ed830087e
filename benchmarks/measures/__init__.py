"""What is measured in memdiff's own environment."""
