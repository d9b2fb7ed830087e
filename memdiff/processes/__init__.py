"""Processes that end with those that started them, and files that one process holds.

ancestors      Who a rank's ancestors are, and the start of the watcher that waits for their end
bound          Runs a module in a process that the kernel kills with its parent
cores          How many processors this process may use
ending         How a rank's process ends: once its hooks have run, with its exit code, and nothing after them
faults         Faults that tests ask for at a landmark: MEMDIFF_FAULT="KIND:point=PLACE,rank=N,nth=N,file=PATH"
file_lock      A file that one process, or one run's processes, hold while they live
heartbeat      A page of memory in which a rank says where it is and when it got there, for its watcher to read
host           `python -m memdiff.processes.host`: one host's part of a run, at the far end of an ssh connection
identity       Which processes live, told apart from later ones with the same number. Linux's /proc; no torch
landmarks      Where this process is in its work, told whenever it gets on
launched       DeepSpeed's launcher and its ranks as `memdiff train` sees them: who asks to stop, which rank ended first
rank           What a rank does first: it listens to requests to stop, shows that it lives, and is watched
shared_memory  The buffer in shared memory that a CPU rank talks to the others through: its name, and its removal
stops          Requests to stop: which signals ask for one, and where a process acts on it
watcher        `python -m memdiff.processes.watcher [OPTIONS] RANK ANCESTOR ...`, each NAME=PID:START
"""
