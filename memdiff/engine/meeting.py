"""How the ranks of several hosts find each other: within a time that a person waits, by the right network.

torch's own way waits for half an hour without a word, and gloo takes the network of the host's own name, which on many
machines is the loopback's.
"""

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch.distributed.constants import default_pg_timeout

from memdiff.errors import ConfigError, PeerError
from memdiff.processes.host import SECONDS_TO_MEET
from memdiff.runtime.ranks import Ranks

SECONDS_TO_WAIT = 60.0  # for a rank of another launcher, where SECONDS_TO_MEET says nothing else
MOST_SECONDS = 86400.0
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
IN_USE = "already in use"  # in what torch says of a port
GET_ADDRESS = 0x8915  # SIOCGIFADDR, <linux/sockios.h>


def meet(ranks: Ranks) -> None:
    """The process group of a run over several hosts, where launch.py says that there are some; else nothing.

    Raises PeerError where a rank does not come, and ConfigError.
    """
    if int(os.environ.get("CROSS_SIZE", "1")) == 1:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    seconds = seconds_to_meet()
    use_interface_to(address)
    try:
        store = torch.distributed.TCPStore(
            address, port, ranks.world_size, ranks.is_first, timedelta(seconds=seconds), wait_for_workers=True
        )
    except torch.distributed.DistError as error:
        if IN_USE in str(error):
            raise
        raise _nobody(ranks, address, port, seconds) from None
    store.set_timeout(default_pg_timeout)
    gpu = ranks.device.type == "cuda"
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", store=store, rank=ranks.rank, world_size=ranks.world_size,
        device_id=ranks.device if gpu else None,
    )  # fmt: skip


def seconds_to_meet() -> float:
    """What SECONDS_TO_MEET says. ConfigError where that is no number of seconds to wait."""
    text = os.environ.get(SECONDS_TO_MEET, str(SECONDS_TO_WAIT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise ConfigError(f"{SECONDS_TO_MEET} must be seconds, above 0 and at most {MOST_SECONDS:.0f}, got {text!r}")
    return seconds


@contextmanager
def port_told() -> Iterator[None]:
    """ConfigError where another program has the port that ranks are to meet at."""
    try:
        yield
    except torch.distributed.DistNetworkError as error:
        if IN_USE not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise ConfigError(
            f"port {port}, at which the ranks are to meet, is in use; give the launcher another: --master_port"
        ) from None


def _nobody(ranks: Ranks, address: str, port: int, seconds: float) -> PeerError:
    there = "not all of" if ranks.is_first else "the first of"
    return PeerError(
        f"rank {ranks.rank} waited {seconds:.0f} s ({SECONDS_TO_MEET}) at {address}:{port} for {there} "
        f"{ranks.world_size} ranks"
        "; look whether each host's launcher was started, and whether the hosts reach that address"
    )


def use_interface_to(address: str) -> None:
    """Has gloo use the network that leads to the first host, unless the user has chosen one."""
    if GLOO_INTERFACE in os.environ or not sys.platform.startswith("linux"):
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((address, 9))  # sends nothing
            own = way.getsockname()[0]
            names = [name for _, name in socket.if_nameindex() if _address_of(way, name) == own]
    except OSError:
        return
    if names:
        os.environ[GLOO_INTERFACE] = names[0]


def _address_of(any_socket: socket.socket, interface: str) -> str | None:
    try:
        answer = fcntl.ioctl(any_socket.fileno(), GET_ADDRESS, struct.pack("256s", interface.encode()[:15]))
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])
