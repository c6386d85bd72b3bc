"""Messages over stream sockets: eight bytes of length, then that many bytes. And descriptors handed over with one."""

import array
import json
import os
import socket
from typing import Any, Final

__all__ = [
    "LONGEST",
    "MOST_DESCRIPTORS",
    "BrokenWire",
    "framed",
    "receive",
    "receive_job",
    "receive_json",
    "send",
    "send_job",
    "send_json",
]

LONGEST: Final = 512 << 20  # bytes of one message; more is refused by whoever receives it
MOST_DESCRIPTORS: Final = 253  # the kernel's limit for one message
_PIECE: Final = 1 << 20


class BrokenWire(Exception):
    """The other side is gone, or sent what is not a message."""


def framed(*parts: bytes) -> bytes:
    """Return messages as the bytes that `send` would send."""
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "little"), part))


def send(wire: socket.socket, message: bytes | bytearray) -> None:
    """Send one message; BrokenWire when nobody is there."""
    try:
        wire.sendall(len(message).to_bytes(8, "little") + message)
    except OSError as error:
        raise BrokenWire("the other side is gone") from error


def _exactly(wire: socket.socket, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        try:
            piece = wire.recv(min(size - len(data), _PIECE))
        except OSError as error:
            raise BrokenWire("the other side is gone") from error
        if not piece:
            raise BrokenWire("the other side is gone")
        data += piece
    return data


def receive(wire: socket.socket, *, most: int = LONGEST) -> bytearray:
    """Wait for one message; BrokenWire at the end of the stream or when it claims to be longer than `most`."""
    size = int.from_bytes(_exactly(wire, 8), "little")
    if size > most:
        raise BrokenWire(f"a message of {size} bytes, more than {most}")
    return _exactly(wire, size)


def send_json(wire: socket.socket, value: object) -> None:
    """Send a message that is JSON."""
    send(wire, json.dumps(value).encode())


def receive_json(wire: socket.socket, *, most: int = LONGEST) -> Any:
    """Wait for a message that is JSON."""
    return json.loads(receive(wire, most=most))


def send_job(wire: socket.socket, job: object, descriptors: list[int]) -> None:
    """Send a short JSON message with descriptors over a SOCK_SEQPACKET socket."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        wire.sendmsg([json.dumps(job).encode()], rights)
    except OSError as error:
        raise BrokenWire("the other side is gone") from error


def receive_job(wire: socket.socket) -> tuple[Any, list[int]]:
    """Wait for what `send_job` sends; descriptors are closed on exec."""
    try:
        data, ancillary, _, _ = wire.recvmsg(1 << 16, socket.CMSG_SPACE(MOST_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise BrokenWire("the other side is gone") from error
    if not data:
        raise BrokenWire("the other side is gone")
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return json.loads(data), list(descriptors)
