"""The built-in digits models: they need no download."""
