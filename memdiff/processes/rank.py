"""What a rank does first: it listens to requests to stop, shows that it lives, and is watched. No torch."""

import faulthandler
import os
import signal

from memdiff.processes import landmarks
from memdiff.processes.ancestors import watch_ancestors
from memdiff.processes.ending import end_after_hooks
from memdiff.processes.faults import VARIABLE, Fault
from memdiff.processes.heartbeat import Heartbeat
from memdiff.processes.stops import Stops, exit_at_once


def under_launcher() -> bool:
    """Whether this process is a rank that a launcher started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def begin_rank() -> tuple[Stops, Heartbeat]:
    """Before imports that take their time. Returns the requests to stop it gets, and where it shows its landmarks."""
    end_after_hooks()
    stops, heartbeat = Stops(exit_at_once, rank=os.environ.get("RANK", "0")), Heartbeat.make()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # the watchdog's; it needs no Python to run
    landmarks.show(heartbeat.beat)
    landmarks.go_to("loading")
    read, write = os.pipe()  # both ends stay open here: a pipe that breaks with the watcher is a line for each signal
    for descriptor in (read, write):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # written to even while this process hangs in C
    stops.listen()
    watch_ancestors(
        f"--page={heartbeat.descriptor}", f"--requests={read}", descriptors=(heartbeat.descriptor, read)
    )  # fmt: skip
    landmarks.observe(lambda _: stops.check())
    if VARIABLE in os.environ:
        landmarks.observe(Fault.parse(os.environ[VARIABLE]).strike)
    return stops, heartbeat
