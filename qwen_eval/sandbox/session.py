"""The session's process: an IPython shell that runs one step after another and sends what is to be seen of each.

The shell and the libraries that such programs use are made once, by `warm` in the zygote; a session is a fork of that.
Nothing here is a wall: the programs share this process and may do with it what they like. What they can reach with that
is what is said about their own item.
"""

import binascii
import builtins
import contextlib
import inspect
import io
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import Any, Final

from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from traitlets import Type
from traitlets.config import Config

from qwen_eval.sandbox import messages, wire

__all__ = ["run", "warm"]

LIBRARIES: Final = ("numpy", "pandas", "matplotlib.pyplot", "seaborn", "sympy")
_PIECE: Final = 1 << 13  # bytes of a stream that wait to be sent together
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_STREAMS: Final = ((b"o", 1), (b"e", 2))
# What is loaded when it is first used is loaded here: a traceback, a table, a picture.
_FIRST: Final = (
    "import matplotlib.pyplot as plt, pandas as pd",
    "plt.plot([1, 2], label='a')\nplt.title('a')\nplt.legend()\nplt.show()",
    "print(pd.DataFrame({'a': [1, 2]}).describe())\npd.DataFrame({'a': ['b']})",
    "%time 1 / 0",
    "def (",
)


class Recorder:
    """Sends what a step says, within limits."""

    def __init__(self) -> None:
        self._wire: socket.socket | None = None
        self._lock = threading.RLock()
        self._process, self._main = 0, threading.get_ident()
        self._files: dict[bytes, Any] = {}
        self._busy = self._interrupted = False
        self.start()

    def open(self, wire_end: socket.socket) -> None:
        """Send to `wire_end` from now on, and take what is written to descriptors 1 and 2 for output as well."""
        self._wire, self._process = wire_end, os.getpid()
        for kind, descriptor in _STREAMS:
            file = tempfile.TemporaryFile("w+b", buffering=0, dir=os.environ["TMPDIR"])  # noqa: SIM115 (kept open)
            appending = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_APPEND)
            os.dup2(appending, descriptor)
            os.close(appending)
            self._files[kind] = file

    def start(self) -> None:
        """Begin a step."""
        self._kind, self._pending = b"", bytearray()
        self._texts = self._images = self._sent = 0
        self._cut: set[str] = set()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT: a KeyboardInterrupt, but never in the middle of a message."""
        if self._busy:
            self._interrupted = True
        else:
            raise KeyboardInterrupt

    def add(self, kind: bytes, content: bytes) -> None:
        """Take up a piece of output."""
        if self._process != os.getpid():  # a child that the program has forked: its parent reads the file
            if kind in self._files:
                os.write(1 if kind == b"o" else 2, content)
            return
        if threading.get_ident() != self._main:
            with self._lock:
                self._add(kind, content)
            return
        self._busy = True
        try:
            with self._lock:
                self._add(kind, content)
        finally:
            self._busy = False
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _add(self, kind: bytes, content: bytes) -> None:
        if kind == b"i":
            self._images += 1
            if self._images > messages.MOST_IMAGES or len(content) > messages.LONGEST:
                self._cut.add(f"Only {messages.MOST_IMAGES} images of {messages.LONGEST >> 20} MiB are kept of a step.")
                return
        elif kind == b"x":
            content = content[: messages.LONGEST_ERROR]
        else:
            room = messages.MOST_TEXT - self._texts
            if len(content) > room:
                self._cut.add(f"Only {messages.MOST_TEXT >> 20} MiB of output is kept of a step.")
                content = content[: max(0, room)]
            self._texts += len(content)
        if self._sent >= messages.MOST_MESSAGES and kind != b"x":
            self._cut.add(f"Only {messages.MOST_MESSAGES} pieces of output are kept of a step.")
            return
        if kind != self._kind or kind not in self._files:
            self._flush()
        self._kind = kind
        self._pending += content
        if len(self._pending) >= _PIECE or kind not in self._files:
            self._flush()

    def _flush(self) -> None:
        if self._pending and self._wire is not None:
            self._wire.sendall(messages.pack(self._kind, self._pending))
            self._sent += 1
        self._pending.clear()

    def drain(self) -> None:
        """Take up what was written to the descriptors themselves, by other programs or libraries."""
        if self._process != os.getpid():
            return
        for kind, file in self._files.items():
            file.seek(0)
            content = file.read(messages.MOST_TEXT + 1)
            if content:
                os.ftruncate(file.fileno(), 0)
                self.add(kind, content)

    def finish(self, end: str) -> None:
        """Send what is left of a step, and its end."""
        self._interrupted = False
        for line in sorted(self._cut):
            self._flush()
            self._kind = b"e"
            self._pending += f"{line}\n".encode()
        self._flush()
        if self._wire is not None:
            self._wire.sendall(messages.pack(messages.END, end.encode()))


class _Stream(io.BufferedIOBase):
    """Standard output or error."""

    def __init__(self, recorder: Recorder, kind: bytes, descriptor: int) -> None:
        self._recorder, self._kind, self._descriptor = recorder, kind, descriptor

    def write(self, content: Any) -> int:
        data = bytes(content)
        self._recorder.add(self._kind, data)
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor


class _Publisher(DisplayPublisher):  # type: ignore[misc]
    """Takes pictures from the shell, and for everything else that is displayed its text."""

    def publish(self, data: dict[str, Any], metadata: Any = None, **more: Any) -> None:
        if not _show_image(_Shell.recorder, data):
            _show_text(_Shell.recorder, data)

    def clear_output(self, wait: bool = False) -> None:
        """Keep what was said."""


class _Hook(DisplayHook):  # type: ignore[misc]
    """Takes the value of a step's last expression."""

    def write_output_prompt(self) -> None:
        """Write none."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        _show_text(_Shell.recorder, format_dict)
        _show_image(_Shell.recorder, format_dict)


def _show_text(recorder: Recorder, data: dict[str, Any]) -> None:
    if "text/plain" in data:
        recorder.add(b"r", _bytes(str(data["text/plain"])))


def _show_image(recorder: Recorder, data: dict[str, Any]) -> bool:
    picture = data.get("image/png")
    if picture is not None:
        recorder.add(b"i", picture if isinstance(picture, bytes) else binascii.a2b_base64(str(picture)))
    return picture is not None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


class _Compiler(CachingCompiler):  # type: ignore[misc]
    """Says at once where the lines of a step are.

    `inspect` would look through all modules for each frame of a traceback: 15 s for a recursion without end.
    """

    def cache(self, *arguments: Any, **more: Any) -> str:
        name = str(super().cache(*arguments, **more))
        inspect.modulesbyfile[name] = inspect.modulesbyfile[os.path.abspath(name)] = "__main__"
        return name


class _Shell(InteractiveShell):  # type: ignore[misc]
    """IPython without a terminal, a history or a way to ask."""

    compiler_class = Type(_Compiler)
    displayhook_class = Type(_Hook)
    display_pub_class = Type(_Publisher)
    recorder: Recorder

    def enable_gui(self, gui: Any = None) -> None:
        """There is no window to be opened."""

    def ask_exit(self) -> None:
        """A session ends with its item."""

    def system(self, cmd: str) -> None:
        """Run a command of the shell (`!ls`)."""
        import subprocess

        command = self.var_expand(cmd, depth=1)
        try:
            self.user_ns["_exit_code"] = subprocess.call(command, shell=True)
        finally:
            self.recorder.drain()

    def _get_exc_info(self, exc_tuple: Any = None) -> Any:
        """Return the exception to be shown, without the frames of this file at its end (an interrupt, a write)."""
        kind, error, trace = super()._get_exc_info(exc_tuple)
        last = trace
        while last is not None and last.tb_next is not None:
            if last.tb_next.tb_frame.f_code.co_filename == __file__:
                last.tb_next = None
            last = last.tb_next
        return kind, error, trace

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        self.recorder.add(b"x", _bytes(_ANSI.sub("", "\n".join(stb))))


def _no_input(*_: object) -> str:
    raise RuntimeError("input() cannot be used here: there is nobody to answer.")


def _make_shell(recorder: Recorder) -> _Shell:
    settings = Config()
    settings.HistoryManager.enabled = False
    settings.HistoryManager.hist_file = ":memory:"
    settings.InteractiveShell.colors = "nocolor"
    settings.InteractiveShell.autoindent = False
    _Shell.recorder = recorder
    shell: _Shell = _Shell.instance(config=settings)
    shell.enable_matplotlib("inline")
    select_figure_formats(shell, {"png"}, bbox_inches="tight")  # which the first shell of a process gets by itself
    builtins.input = _no_input
    return shell


def warm(folder: str) -> None:
    """Import what sessions use and make the shell they start with; `folder` can be written to while this runs."""
    global _shell
    os.environ |= {"MPLCONFIGDIR": f"{folder}/.config/matplotlib", "IPYTHONDIR": f"{folder}/.ipython", "TERM": "dumb"}
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in LIBRARIES:
        __import__(name)
    from matplotlib_inline.config import InlineBackend

    shell = _make_shell(Recorder())
    for code in _FIRST:
        _execute(shell, code)
    _Shell.clear_instance()
    InlineBackend.clear_instance()
    _shell = _make_shell(Recorder())
    deadline = time.monotonic() + 10
    while threading.active_count() > 1:  # matplotlib's, while it looks for fonts: it would not survive a fork
        if time.monotonic() > deadline:
            raise RuntimeError(f"threads are left: {threading.enumerate()}")
        time.sleep(0.01)


_shell: _Shell


def run(wire_end: socket.socket, line: socket.socket) -> None:
    """Put the item's files into the working folder, then run one step after another until nobody is there."""
    recorder, shell, process = _shell.recorder, _shell, os.getpid()
    folder = os.getcwd()
    if folder != os.environ["HOME"]:  # without walls every session has another folder
        sys.path[0] = os.environ["HOME"] = os.environ["TMPDIR"] = folder
        os.environ |= {"MPLCONFIGDIR": f"{folder}/.config/matplotlib", "IPYTHONDIR": f"{folder}/.ipython"}
    for name in wire.receive_json(wire_end):
        content = wire.receive(wire_end)
        with open(os.path.join(folder, name), "xb") as file:
            file.write(content)
    recorder.open(wire_end)
    os.register_at_fork(after_in_child=wire_end.close)  # what answers is this process
    os.register_at_fork(after_in_child=line.close)
    end = "ok"
    while True:
        recorder.finish(end)
        line.send(b"done")
        code = wire.receive(wire_end).decode("utf-8", "surrogatepass")
        recorder.start()
        try:
            end = _execute(shell, code)
        except KeyboardInterrupt:  # it came when the step had ended
            end = "error"
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getpid() != process:
            os._exit(0)


def _execute(shell: _Shell, code: str) -> str:
    """Run one step; return "ok" or "error"."""
    recorder = shell.recorder
    for name, (kind, descriptor) in zip(("stdout", "stderr"), _STREAMS, strict=True):
        stream = _Stream(recorder, kind, descriptor)
        setattr(sys, name, io.TextIOWrapper(stream, "utf-8", "backslashreplace", write_through=True))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (nothing to close)
    signal.signal(signal.SIGINT, recorder.interrupt)
    try:
        done = shell.run_cell(code, store_history=True)
        good = bool(done.success)
    except BaseException as error:  # what a program has made of the shell, or an interrupt that came late
        good = False
        with contextlib.suppress(BaseException):
            recorder.add(b"x", _bytes(f"{type(error).__name__}: {error}"))
    with contextlib.suppress(Exception):
        recorder.drain()
    return "ok" if good else "error"
