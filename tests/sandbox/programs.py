"""Programs to try the sandbox with, as rows of `python -m qwen_eval sandbox`. Their texts stand in `programs/`.

    python tests/sandbox/programs.py hostile > hostile.jsonl    # the rows, with the names in braces still in them

A text has programs like this, in a file for each family; `programs/tests.txt` has tests that several of them share:

    === exit/sys-exit-0 | ADD               name, a shared test or an entry point, flags (below)
    why: it leaves before there is a function
    harm: {"file": "{CANARY_FILE}"}
    ---                                     then the program; `--- prompt` and `--- test` are other parts,
    import sys                              `--- nonewline` a program that its prompt runs straight into
    sys.exit(0)

Hostile programs must never be "passed": the function they offer is wrong or missing. Where the flag is `iff`, the
function is right if and only if what was tried succeeded, so that a pass is the proof of a hole. Honest programs are
right and must pass. The proofs are mild where they can be (open for writing and close, signal 0), but not harmless where
a sandbox fails: the suite kills its process group, fills memory and forks, so run it on a machine that may be lost.

A row is the command's input row and:

    why        one line: what it tries, or what is awkward about it
    harm       what must not have happened outside, whatever the verdict (below)
    pair       rows of one name run one after the other, in this order, in one call of the command
    arch       only on this machine

Texts in curly braces are the test runner's to fill in, by `fill`:

    {CANARY}       a random text: the value of QWEN_EVAL_CANARY in the harness's environment and of {SECRET_FILE}
    {CANARY_FILE}  a path outside the sandbox, writable for the user, that does not exist
    {SECRET_FILE}  a file with mode 0600 in {HOME}; {HOME}: a folder that HOME names, with .bashrc, .profile, .pythonrc, .ssh/id_test
    {PORT}, {UDP_PORT}, {UNIX_SOCKET}, {ABSTRACT}  listeners that count: TCP and UDP on every loopback address, a path in
                   the file system, an abstract name; {PORT2}: a free port that the runner tries to reach
    {VICTIM_PID}   a sleeping process of the same user whose command line contains {VICTIM_NAME}
    {MARK}         at most 15 letters and digits, another for every row (one for both rows of a pair): process and file names;
                   a file {MARK}-tmp lies in /tmp
    {HOSTNAME}, {SITE}, {STDLIB}, {REPO}, {INPUT_FILE}, {OUTPUT_FILE}  what they say
    {FILLER}, {FILLER_ELEMENTS}  5 MB of comment lines, of list elements: filled in by `fill` itself

Harm, every key of which must hold afterwards:

    file            this path (or these) must not exist      unchanged       these files have their bytes, mode and times
    unchanged_glob  so have all of these                     text            must not be in any output of the command
    process         no process has this name or argument     alive           this pid lives and is not stopped
    listener        "tcp", "udp", "unix", "abstract": nothing arrived there
    no_listener_on  nobody listens on this port meanwhile    wall_s          the verdict came within so many seconds
    memory_mb       the host's used memory (shared memory included) never grew by more
    disk_mb         no file system of the host lost more     rows            the output has exactly so many rows
    after_s         look so many seconds after the verdict   sysv, core, suid, hostname, keyring  no segment, core file,
                    setuid file, changed host name, key of that name is left behind

And always: one verdict for every row, in order, no "error", and the honest row that follows passes.
"""

import codecs
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

TEXTS = Path(__file__).resolve().parent / "programs"
Row = dict[str, Any]


def fill(text: str, values: dict[str, str]) -> str:
    """The text with the runner's values in place of the names in braces."""
    sizes = {"FILLER": "# passed\n" * 600_000, "FILLER_ELEMENTS": "0, " * 1_700_000}
    for name, value in {**values, **sizes}.items():
        text = text.replace("{" + name + "}", value)
    return text


# What several programs begin with: they look for the text of the test and take the answers from it.
LEARN = r"""import re
SEEN = {}
def learn(text):
    for m in re.finditer(r"assert candidate\(([\d, ]+)\) == (\d+)", text):
        SEEN[repr(tuple(int(x) for x in m[1].split(",")))] = int(m[2])
"""

# What programs begin with that answer the judge by hand; where the official judge runs them, they read its token.
WIRE = r"""import sys as _s, os as _o
_f = _s._getframe(1)
while _f and _f.f_code.co_name != "run": _f = _f.f_back
_L, _G = (_f.f_locals, _f.f_globals) if _f else ({}, {})
if "shown" in _L:
    _w = _G["wire"]; _w.send_json(_L["verdict"], {"token": _w.receive_json(_L["program"])}); _o._exit(0)
END = _L.get("end"); CALLS = _L.get("calls"); WIRE = _G.get("wire")
EX = _s.modules.get("x") or (type(END).wait.__globals__ if END else {})
PLAIN, READING, CLASSES = EX.get("plain"), EX.get("reading"), EX.get("classes")
class R:  # raw bytes in a value
    def __init__(self, b): self.b = b
def _give(w, v):
    if isinstance(v, R): w.data += v.b
    else: END._give(w, v)
def enc(v, kept=None):
    w = PLAIN.Writer(_give, kept); w.value(v); return bytes(w.data)
def sz(n):
    o = bytearray()
    while n > 127: o.append(n & 127 | 128); n >>= 7
    o.append(n); return bytes(o)
def H(n=0): return R(b"H" + sz(n))
def nest(d, inner): return R(b"l\x01-" * d + enc(inner) if not isinstance(inner, R) else b"l\x01-" * d + inner.b)
def txt(s): b = s.encode("utf-8", "surrogatepass"); return sz(len(b)) + b
def _take2(r, tag):
    if tag == b"H": return r.size()
    if tag in (b"J", b"K"): return (r.size(), r.text(), r.text())
    return END._take(r, tag)
def serve(answer):
    def put(b): WIRE.send(CALLS, b)
    put(b"a" + enc(("ok", None, [], [])))
    n = 0
    while True:
        try: m = WIRE.receive(CALLS)
        except BaseException: _o._exit(0)
        try: op, args, ch = READING.Reader(m[1:], _take2, HELD if m[:1] == b"q" else None).whole()
        except BaseException as e: op, args, ch = "?", (), []
        b = answer(n, op, args); n += 1
        if b is not None: put(b)
HELD = []
def ok(v, changes=(), retained=()): return b"a" + enc(("ok", v, list(changes), list(retained)))
def bad(names, base, args, text="", state=None, changes=(), retained=()): return b"a" + enc(("raise", names, base, args, text, state or {}, list(changes), list(retained)))
"""

# The function is right where the attempt succeeded.
IFF = """def attempt():
{attempt}

try:
    SUCCEEDED = bool(attempt())
except BaseException:
    SUCCEEDED = False

def {name}(a, b):
    return {right} if SUCCEEDED else None
"""
RIGHT = {"add": "a + b", "mix": "(31 * a + 17 * b) % 1009"}

PROMPTS = {
    "ADD": 'def add(a, b):\n    """The sum of a and b."""\n',
    "POINT": "from dataclasses import dataclass\n\n@dataclass\nclass Point:\n    x: float\n    y: float\n\n"
    'def midpoint(p, q):\n    """The point in the middle."""\n',
}


def blocks(text: str) -> list[tuple[str, list[str], dict[str, str], dict[str, str]]]:
    """Name, words after the bar, `key: value` lines and `---` sections of every program of a text."""
    found = []
    for block in text.lstrip("\n").removeprefix("=== ").split("\n=== "):
        title, _, rest = block.removesuffix("\n").partition("\n")
        name, _, words = title.partition(" | ")
        keys: dict[str, str] = {}
        sections: dict[str, list[str]] = {}
        section = ""
        for line in rest.split("\n"):
            if line == "---" or line in ("--- test", "--- prompt", "--- nonewline"):
                section = line[4:] or "program"
                sections[section] = []
            elif section:
                sections[section].append(line)
            elif line:
                key, _, value = line.partition(": ")
                keys[key] = value
        found.append(
            (name.strip(), words.split(), keys, {k: "".join(f"{x}\n" for x in v) for k, v in sections.items()})
        )
    return found


def _tests() -> dict[str, tuple[str, str]]:
    text = (TEXTS / "tests.txt").read_text(encoding="utf-8")
    named = (block.split("\n", 1) for block in f"\n{text}".split("\n=== ")[1:])
    return {title.split()[0]: (title.split()[1], f"{test.removesuffix(chr(10))}\n") for title, test in named}


TESTS = _tests()


def rows(text: str) -> list[Row]:
    """The rows of a text of programs."""
    made: list[Row] = []
    for number, (name, words, keys, sections) in enumerate(blocks(text)):
        first, flags = words[0], {w.partition("=")[0]: w.partition("=")[2] for w in words[1:]}
        entry, test = TESTS[keys.get("test", first)] if first.isupper() else (first, sections["test"])
        program = sections["program"] if "program" in sections else sections["nonewline"].removesuffix("\n")
        prompt = PROMPTS[keys["prompt"]] if "prompt" in keys else sections.get("prompt", "")
        if "nonewline" in sections:
            prompt = prompt.removesuffix("\n")
        program, prompt = program.replace("␣", " "), prompt.replace("␣", " ")  # blanks no editor may take away
        if "learn" in flags:
            program = LEARN + program
        if "iff" in flags:
            program = IFF.format(attempt=textwrap.indent(program.rstrip("\n"), "    "), name=entry, right=RIGHT[entry])
        if "wire" in flags:
            program = program.replace("serve(A)", f"{WIRE}serve(A)") if prompt else WIRE + program
        if "ff" in flags:
            program = program.replace("\n\n", "\n\f\n").removesuffix("\n")
        if "splice" in flags:
            program = program.removesuffix("\n")
        for flag, end in (("crlf", "\r\n"), ("cr", "\r")):
            if flag in flags:
                program, test = program.replace("\n", end), test.replace("\n", end)
        row: Row = {"task_id": name}
        # Both ways to give a program, in turn, where there is no prompt.
        row |= {"prompt": prompt, "completion": program} if prompt or number % 2 else {"program": program}
        row |= {"test": test, "entry_point": entry}
        if "timeout" in keys:
            row["timeout"] = int(keys["timeout"])
        row["why"] = keys["why"]
        if "harm" in keys:
            row["harm"] = json.loads(keys["harm"])
        if "x86_64" in flags:
            row["arch"] = "x86_64"
        if "pair" in flags:
            row["pair"] = flags["pair"]
        made.append(row)
    return made


def odd_row(name: str, why: str, program: str, **more: object) -> Row:
    """A row whose source is easier to make than to write down."""
    entry, test = TESTS["ADD"]
    row: Row = {"task_id": name, "program": program, "test": test, "entry_point": entry}
    return row | {"why": why} | more


WRONG_ADD = "def add(a, b):\n    return 0\n"
RIGHT_ADD = "def add(a, b):\n    return a + b\n"


def odd_hostile() -> list[Row]:
    """Sources no editor would keep."""
    rot13 = "# -*- coding: rot13 -*-\n" + codecs.encode(RIGHT_ADD, "rot13")
    utf7 = "# -*- coding: utf-7 -*-\n# +AAo-def add(a, b): return a +- b\n" + WRONG_ADD
    make = odd_row
    return [
        make(
            "source/null-bytes",
            "NUL characters: compile refuses them; a file or C string would end there, before the wrong definition",
            RIGHT_ADD + "\0\n" + WRONG_ADD,
        ),
        make(
            "source/null-byte-first",
            "a NUL at the very beginning: an empty program for who stops there",
            "\0" + RIGHT_ADD,
        ),
        make(
            "source/lone-surrogate",
            "a lone surrogate in the source cannot be encoded; the function is wrong besides",
            "x = '\ud800'\n" + WRONG_ADD,
        ),
        make(
            "source/coding-rot13",
            "a coding comment for rot13: as a text (exec of a str) it is ignored and this is no function add; only a file read by its cookie would define the right one",
            rot13,
        ),
        make(
            "source/coding-utf7",
            "utf-7: the right function hides in a comment for who decodes by the cookie; as a text the wrong one is all there is",
            utf7,
        ),
        make(
            "source/cr-hides-the-wrong-line",
            "a lone CR ends the comment line: what looks like a comment redefines add, wrongly",
            RIGHT_ADD + "# note\rdef add(a, b): return 0\n",
        ),
        make(
            "source/ctrl-z",
            "a Ctrl-Z, where old readers stop: before it the right function, after it the wrong one; Python 3 refuses the character",
            RIGHT_ADD + "\x1a\n" + WRONG_ADD,
        ),
        make(
            "source/unicode-line-separators",
            "U+2028 and U+0085 end lines for str.splitlines, not for Python: in a comment they hide the right function",
            "# \u2028" + RIGHT_ADD.replace("\n    ", " ") + "# \x85add = lambda a, b: a + b\n" + WRONG_ADD,
        ),
        make(
            "source/five-megabytes",
            "5 MB of comments before a wrong function",
            "{FILLER}" + WRONG_ADD,
            timeout=5,
        ),
        make(
            "source/five-megabyte-expression",
            "5 MB of list elements in one expression, then a wrong function: the compiler takes hundreds of MB",
            "x = [{FILLER_ELEMENTS}]\n" + WRONG_ADD,
            timeout=5,
            harm={"memory_mb": 6000},
        ),
        make(
            "source/nested-parentheses",
            "5,000 parentheses: the parser refuses or overflows, which must not crash the harness",
            "x = " + "(" * 5000 + "1" + ")" * 5000 + "\n" + RIGHT_ADD,
        ),
        make(
            "source/nested-unary",
            "60,000 minus signs overflow the compiler's stack in some versions",
            "x = " + "-" * 60000 + "1\n" + WRONG_ADD,
        ),
        make(
            "source/nested-attributes",
            "30,000 attribute lookups in one expression",
            "def f(a):\n    return a" + ".real" * 30000 + "\n" + WRONG_ADD,
        ),
        make(
            "source/nested-blocks",
            "99 levels of indentation, then one more than Python allows",
            "".join("  " * i + "if 1:\n" for i in range(101)) + "  " * 101 + "pass\n" + RIGHT_ADD,
        ),
        make(
            "source/huge-literal",
            "an integer literal of 100,000 digits, which Python 3.11 refuses to read",
            "x = " + "9" * 100000 + "\n" + RIGHT_ADD.replace("a + b", "x"),
        ),
        make(
            "source/constant-folding",
            "constants that an optimiser would fold into gigabytes",
            "x = lambda: ((1 << 120) << 120, 'a' * 4000 * 4000 * 4000, (0,) * 200 * 200 * 200 * 200)\n" + WRONG_ADD,
        ),
    ]


def odd_honest() -> list[Row]:
    """The same, for right functions."""
    return [
        odd_row(
            "source/five-megabytes-of-comments",
            "5 MB of comments around a right function",
            "{FILLER}" + RIGHT_ADD + "{FILLER}",
            timeout=10,
        ),
        odd_row(
            "source/many-functions",
            "3,000 helper functions before the one asked for",
            "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(3000))
            + "def add(a, b):\n    return f0(a) + f0(b)\n",
        ),
        odd_row(
            "source/long-line",
            "one line of 100 KB",
            "x = '" + "y" * 100000 + "'; add = lambda a, b: a + b + len(x) - 100000\n",
        ),
        odd_row(
            "source/mixed-line-ends",
            "LF, CRLF and CR in one source",
            "x = 1\r\ny = 2\rdef add(a, b):\n    z = a + b\r\n    return z + x + y - 3\r",
        ),
    ]


def hostile() -> list[Row]:
    """All hostile programs."""
    return [*_read("hostile"), *odd_hostile()]


def honest() -> list[Row]:
    """All honest programs."""
    return [*_read("honest"), *odd_honest()]


def _read(folder: str) -> list[Row]:
    return [row for path in sorted((TEXTS / folder).iterdir()) for row in rows(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for each in {"hostile": hostile, "honest": honest}[sys.argv[1]]():
        print(json.dumps(each))
