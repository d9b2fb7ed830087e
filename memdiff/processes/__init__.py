"""Processes that end with those that started them, and files that one process holds.

ancestors  A rank's ancestors, and the watcher that ends the rank when one of them is gone
bound      `python -m memdiff.processes.bound MODULE ARGUMENTS`
file_lock  A file that one process, or one run's processes, hold while they live
identity   Which processes live, told apart from later ones with the same number. Linux's /proc; no torch
watcher    `python -m memdiff.processes.watcher RANK ANCESTOR ...`, each NAME=PID:START
"""
