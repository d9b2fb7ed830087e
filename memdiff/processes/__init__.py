"""Processes that end with those that started them, and files that one process holds."""
