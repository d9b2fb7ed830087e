"""The files that TensorBoard reads, written without its package. No torch.

A file is a row of records: length (8 bytes), its checksum (4), a message, the message's checksum (4), little-endian.
The message is an `Event` in protobuf's wire format, of which five fields are needed
(https://github.com/tensorflow/tensorboard, compat/proto/event.proto, summary.proto, tensor.proto; unchanged since
2016). Written here, because TensorBoard's package brings 50 MB for it, and other writers hand records to a thread that
ends, or holds the program up, where a disk is full.
"""

import errno
import os
import socket
import struct
import time
from pathlib import Path

VERSION = "brain.Event:2"  # from which on a start marker says which steps before it don't count
START = 1  # SessionLog.SessionStatus
DT_STRING = 7  # DataType
CRC32C_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
MASK_DELTA = 0xA282EAD8  # what TFRecord adds to a turned checksum


class EventFile:
    """A new file of events in a folder; each record is on its way to the disk when a call returns. Raises OSError."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        """`first_step`: what older files in the folder say of this and later steps does not count any more."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**6}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._write(0, text(3, VERSION))
        self._write(first_step, message(7, number(1, START)))

    def scalars(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers by their tags, as fp32."""
        values = [message(1, text(1, tag) + float32(2, value)) for tag, value in numbers.items()]
        self._write(step, message(5, b"".join(values)))

    def image(self, step: int, tag: str, encoded: bytes, *, width: int, height: int) -> None:
        """A PNG or JPEG of three channels."""
        image = number(1, height) + number(2, width) + number(3, 3) + message(4, encoded)
        self._write(step, message(5, message(1, text(1, tag) + message(4, image))))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text for TensorBoard's tab of texts."""
        one_string = number(1, DT_STRING) + message(2, message(2, number(1, 1))) + text(8, markdown)
        metadata = message(1, text(1, "text"))
        value = text(1, f"{tag}/text_summary") + message(8, one_string) + message(9, metadata)
        self._write(step, message(5, message(1, value)))

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()

    def _write(self, step: int, content: bytes) -> None:
        event = double(1, time.time()) + number(2, step) + content
        length = struct.pack("<Q", len(event))
        record = length + checksum(length) + event + checksum(event)
        try:
            if self._file.write(record) != len(record):  # a raw file takes less where the disk fills up
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.close()
            raise


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more come. Not negative."""
    groups = []
    while value > 0x7F:
        groups.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*groups, value])


def number(field: int, value: int) -> bytes:
    """An integer or a member of an enumeration."""
    return varint(field << 3) + varint(value)


def double(field: int, value: float) -> bytes:
    """A double in eight bytes, little-endian."""
    return varint(field << 3 | 1) + struct.pack("<d", value)


def float32(field: int, value: float) -> bytes:
    """A number in four bytes, little-endian; what is too large for them is infinite."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return varint(field << 3 | 5) + packed


def message(field: int, content: bytes) -> bytes:
    """Bytes, or a message in a message, after their length."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def text(field: int, content: str) -> bytes:
    """A string in UTF-8, lone surrogates replaced."""
    return message(field, content.encode("utf-8", errors="replace"))


def _table() -> tuple[int, ...]:
    rows = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CRC32C_POLYNOMIAL if byte & 1 else 0)
        rows.append(byte)
    return tuple(rows)


CRC_TABLE = _table()


def crc32c(content: bytes) -> int:
    """CRC-32C of the content (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def checksum(content: bytes) -> bytes:
    """TFRecord's masked CRC-32C, four bytes."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)
