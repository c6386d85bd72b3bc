"""The candidate's process: executes the program and answers the judge. It never sees the test."""

import builtins
import os
import socket
import sys
import types

from qwen_eval.sandbox import stage, wire
from qwen_eval.sandbox.exchange import ProgramEnd

__all__ = ["run"]


def run(program: socket.socket, calls: socket.socket) -> None:
    """Read a program, execute it, and answer questions on `calls` until they end."""
    source = wire.receive_json(program)["source"]
    program.close()
    module = stage.prepare(source)
    # The program gets built-ins of its own, so that one that redefines sum or len does so for itself and not for us.
    own = types.ModuleType("builtins")
    own.__dict__.update(vars(builtins))
    sys.modules["builtins"] = own
    module.__dict__["__builtins__"] = own
    end = ProgramEnd(calls, module.__dict__)
    os.register_at_fork(after_in_child=calls.close)  # a child of the program's must not answer in its place
    raised: BaseException | None = None
    try:
        exec(compile(source, module.__file__ or "", "exec"), module.__dict__)
    except BaseException as error:
        raised = error
    try:
        end.loaded(raised)
        end.wait()
    except wire.BrokenWire:
        return  # the judge needs nothing more
