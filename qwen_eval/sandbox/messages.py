"""What a session says while a step runs, as bytes: written by `session.py` inside, read by `sessions.py` outside.

Eight bytes of length, a letter for the kind, the text in UTF-8 or the picture as it is. The reader takes nothing for
granted: whatever stands in these bytes, the session may have been made to say it.
"""

import base64
from collections.abc import Sequence
from typing import Final

__all__ = [
    "END",
    "KINDS",
    "LONGEST",
    "LONGEST_ERROR",
    "MOST_BYTES",
    "MOST_IMAGES",
    "MOST_MESSAGES",
    "MOST_TEXT",
    "PNG",
    "pack",
    "read",
]

KINDS: Final = {b"o": "stdout", b"e": "stderr", b"r": "execute_result", b"x": "error", b"i": "image"}
END: Final = b"."  # the step is over; its text says how
ENDS: Final = ("ok", "error")
PNG: Final = b"\x89PNG\r\n\x1a\n"
MOST_TEXT: Final = 1 << 20  # bytes of text that are kept of one step; of an error besides, as many as LONGEST_ERROR
LONGEST_ERROR: Final = 1 << 17
_NOTES: Final = 1 << 10  # and of what is said about what was not kept
MOST_IMAGES: Final = 20
MOST_MESSAGES: Final = 20_000
LONGEST: Final = 4 << 20  # bytes of one image
MOST_BYTES: Final = 96 << 20  # of all that one step says; nobody who keeps to the limits above comes near


def pack(kind: bytes, content: bytes | bytearray) -> bytes:
    """Return one message as bytes."""
    return (len(content) + 1).to_bytes(8, "little") + kind + content


def read(data: bytes | bytearray) -> tuple[list[tuple[str, str]], str | None]:
    """Return the messages of a step, and its end, None where it did not come to say it.

    Neighbours of one stream are one message. What does not fit the limits, or is no message, is left out.
    """
    parts, end = _parts(data)
    found: list[tuple[str, str]] = []
    texts = images = 0
    for kind, content in parts:
        if kind == b"i":
            images += 1
            if images <= MOST_IMAGES and len(content) <= LONGEST and content.startswith(PNG):
                found.append(("image", base64.b64encode(content).decode()))
            continue
        content = content[: LONGEST_ERROR if kind == b"x" else max(0, MOST_TEXT + _NOTES - texts)]
        texts += len(content) if kind != b"x" else 0
        found.append((KINDS[kind], content.decode("utf-8", "replace")))
    return found, end


def _parts(data: bytes | bytearray) -> tuple[Sequence[tuple[bytes, bytes]], str | None]:
    """Cut the bytes up, up to the end of the step or the first that is no message."""
    parts: list[tuple[bytes, bytearray]] = []
    place = 0
    for _ in range(2 * MOST_MESSAGES):
        size = int.from_bytes(data[place : place + 8], "little")
        kind, content = bytes(data[place + 8 : place + 9]), data[place + 9 : place + 8 + size]
        if size == 0 or not kind or place + 8 + size > len(data) or (kind not in KINDS and kind != END):
            break
        place += 8 + size
        if kind == END:
            word = content.decode("utf-8", "replace")
            return [(one, bytes(text)) for one, text in parts], word if word in ENDS else None
        if parts and parts[-1][0] == kind and kind in (b"o", b"e"):
            parts[-1][1].extend(content)
        else:
            parts.append((kind, bytearray(content)))
    return [(one, bytes(text)) for one, text in parts], None
