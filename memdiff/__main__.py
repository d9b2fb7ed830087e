"""`python -m memdiff`, and `deepspeed --module memdiff`."""

from memdiff.cli import main

main()
