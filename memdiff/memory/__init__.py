"""What runs where, and in how large pieces."""
