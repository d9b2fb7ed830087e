"""The documentation's pages, and in `generate` what is made of the code when they are built."""
