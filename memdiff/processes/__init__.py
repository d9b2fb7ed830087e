"""Processes that end with those that started them, and files that one process holds.

ancestors  Who a rank's ancestors are, and the start of the watcher that waits for their end
bound      Runs a module in a process that the kernel kills with its parent
file_lock  A file that one process, or one run's processes, hold while they live
identity   Which processes live, told apart from later ones with the same number. Linux's /proc; no torch
watcher    Kills a rank whose launcher, or whatever started that, is gone
"""
