"""What the command line reads, writes and refuses."""
