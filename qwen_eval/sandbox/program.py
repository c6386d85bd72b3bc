"""What goes into the sandbox and what comes out."""

import symtable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Final

# A test that speaks of one of these looks at or changes the process it runs in (files, output, patches), and that has
# to be the program's. The list is about tests, which are trusted: nothing a program does brings it to the official
# judge.
IN_PROCESS: Final = frozenset(
    (
        *(
            "open",
            "tempfile",
            "write_text",
            "read_text",
            "touch",
            "shutil",
            "subprocess",
            "stdout",
            "stderr",
            "stdin",
            "redirect_stdout",
        ),
        *("redirect_stderr", "StringIO", "mock", "patch", "monkeypatch", "capsys", "globals", "modules", "inspect"),
        *("getsource", "tracemalloc", "weakref", "chdir", "environ", "seed"),
    )
)

__all__ = ["Outcome", "Program", "Test", "read_test"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and the test it has to pass."""

    source: str  # the whole program: prompt and completion. Untrusted
    prompt: str = ""  # its trusted beginning (the dataset's text): the judge runs it to have the helpers it defines
    test: str  # trusted: defines check(candidate), or statements that call the entry point
    entry_point: str  # may be "" where the test is statements
    timeout: float = 3.0  # CPU seconds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program."""

    passed: bool
    result: str  # "passed", "failed: …", "timed out", or "error: …": no verdict, the fault is not the program's
    judge: str  # "split" or "official": which one decided
    official: bool | None = None  # the other judge's verdict where both ran


@dataclass(frozen=True, kw_only=True)
class Test:
    """What has to be known of a test to run it apart from the program."""

    __test__ = False  # not one of pytest's
    check: bool  # a function `check` to be called, rather than statements
    names: tuple[str, ...]  # global names it reads without having made them
    reaches_in: str  # what it does that needs the program's own process, "" for nothing


@lru_cache(maxsize=4096)
def read_test(test: str) -> Test:
    """Read a test. One that does not compile is left to the judge to fail over."""
    try:
        top, code = symtable.symtable(test, "<test>", "exec"), compile(test, "<test>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Test(check="def check(" in test, names=(), reaches_in="")
    made = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    read: set[str] = set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        symbols = [symbol for symbol in table.get_symbols() if symbol.is_referenced()]
        read |= {symbol.get_name() for symbol in symbols if table is top or symbol.is_global()}
        waiting += table.get_children()
    functions = {table.get_name() for table in top.get_children() if table.get_type() == "function"}
    used = IN_PROCESS & _names(code)
    return Test(
        check="check" in functions, names=tuple(sorted(read - made - functions)), reaches_in=min(used, default="")
    )


def _names(code: CodeType) -> set[str]:
    """Return every name, attribute and module a piece of code speaks of."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return {part for name in code.co_names for part in name.split(".")}.union(*inner)
