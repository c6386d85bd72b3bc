"""The judge's process: runs the trusted test against stand-ins for the program, in a room of its own.

The program is in another process, in other namespaces; all that connects them is one socket. A verdict leaves over a
second one, which the program's processes never held. Whatever a program does to itself, it can only answer questions.
"""

import builtins
import importlib
import socket
import sys
import types
from typing import Any, Final

from qwen_eval.sandbox import stage, wire
from qwen_eval.sandbox.exchange import JudgeEnd
from qwen_eval.sandbox.remote import Remote

__all__ = ["run"]

NAME: Final = "judge"  # of the module the test runs in


def run(verdict: socket.socket, calls: socket.socket) -> bool:
    """Read a test from `verdict`, run it against the program at the other end of `calls`, and say what came of it.

    Return whether the program was gone before the end.
    """
    job = wire.receive_json(verdict)
    end = JudgeEnd(calls)
    try:
        _test(job, end)
        said: dict[str, Any] = {"passed": True}
    except BaseException as error:
        said = {"passed": False, "detail": stage.describe(error)}
        if isinstance(error, ImportError) and not any(error is one for one in end.imports):
            said = {"passed": False, "error": f"the test cannot run: {stage.describe(error)}"}
    # A test may have caught these; they decide all the same.
    if end.unsplittable:
        said = {"passed": False, "unsplittable": end.unsplittable}
    elif end.named and not said["passed"] and not end.ended:
        said["unsplittable"] = "the test is about classes of the program"
    elif end.ended:
        said = {"passed": False, "detail": end.ended}
    wire.send_json(verdict, said)
    return bool(end.ended)


def _test(job: dict[str, Any], end: JudgeEnd) -> None:
    """Run prompt and test. Returning is passing."""
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    names = module.__dict__
    _prompt(job["prompt"], names)
    test = compile(job["test"], "<test>", "exec")
    end.stops = "StopIteration" in job["test"]
    end.answer([])  # the program has been executed, or has raised
    shared = sorted(name for name, value in names.items() if isinstance(value, type) and value.__module__ == NAME)
    if shared:
        end.ask("share", *shared)
        end.shared = {name: names[name] for name in shared}
        end.exceptions = {name: kind for name, kind in end.shared.items() if issubclass(kind, BaseException)}
    entry = job["entry"]
    names[entry] = end.ask("name", entry)
    for name in job["names"]:
        if name not in names and name not in vars(builtins):
            _bind(name, names, end)
    exec(test, names)
    if job["check"]:
        names["check"](names[entry])


def _prompt(prompt: str, names: dict[str, Any]) -> None:
    """Execute the dataset's text for the helpers it defines. It may break off behind the head of the function."""
    for text in (prompt, f"{prompt}\n    pass\n"):
        try:
            exec(compile(text, "<prompt>", "exec"), names)
        except SyntaxError:
            continue
        except Exception:
            return
        return


def _bind(name: str, names: dict[str, Any], end: JudgeEnd) -> None:
    """Give the test a name of the program's, if the program has it."""
    try:
        value = end.ask("name", name)
    except NameError:
        return
    module = _module(name)
    if module is not None:  # what computes with the expected values is the judge's own
        names[name] = module
        return
    end.named = True
    if _is_class(value, end):
        kinds = end.ask("getattr", value, "__mro__")
        value = _exception_class(name, value, kinds, end) or value
    names[name] = value


def _module(name: str) -> types.ModuleType | None:
    """Return the standard library's module of this name; None where the name may as well be something in it."""
    if name not in sys.stdlib_module_names:
        return None
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return None if hasattr(module, name) else module


def _is_class(value: object, end: JudgeEnd) -> bool:
    return isinstance(value, Remote) and end.ask("is_class", value) is True


def _exception_class(name: str, value: Remote, kinds: object, end: JudgeEnd) -> type[BaseException] | None:
    """Return a class of the judge's for an exception class of the program's, so that a test can catch it."""
    if not isinstance(kinds, tuple):
        return None
    bases = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException)]
    if not bases:
        return None
    end.exceptions[name] = type(name, (bases[0],), {})
    return end.exceptions[name]
