"""Rules that find a program in an output: HumanEval, MBPP and their plus sets.

Each rule is a pure function from an output (and what it was to continue) to the text of a program; whether that program
passes is decided where it runs. Published rules are kept with their quirks; `standard` is this project's own. Every
rule first cuts the output at its own stop strings.
"""

import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Final

from qwen_eval.scorers.text import CHAT_ENDS, cut

__all__ = [
    "FUNCTION_ENDS",
    "HUMANEVAL",
    "MBPP",
    "lm_eval",
    "mbpp_opencompass",
    "mbpp_opencompass_chat",
    "mbpp_standard",
    "opencompass",
    "qwen",
    "qwen_chat",
    "signature_and_docstring",
    "standard",
]

FUNCTION_ENDS: Final = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function's body is over: the stop strings of Codex (Chen et al. 2021, section 3.1)."""

INDENT: Final = "    "


# ------------------------------------------------------------------------------------------------- HumanEval, published


def qwen(output: str, prompt: str, entry_point: str) -> str:
    """Qwen's base script: the prompt, and the output before its first blank line or `def `.

    127 of the 164 reference solutions survive it: blank lines inside a body and functions inside it are cut.
    """
    return prompt + cut(output, "<|endoftext|>", "\n\n\n", "\n\n", "def ")


def qwen_chat(output: str, prompt: str, entry_point: str) -> str:
    """Qwen's chat script: the prompt, and the *body* of the function that the reply defines.

    In this order: a fence with the function in it, to the closing fence; the function anywhere, as far as its lines
    are indented; any function, likewise; the whole reply, four spaces deeper. The body begins behind the first colon
    that ends a line. Imports and helpers before the function are lost; a closing fence that does not begin a line is
    not seen; a reply that is indented already ends up too deep.
    """
    return prompt + _chat_body(cut(output, *CHAT_ENDS), entry_point)


def _chat_body(reply: str, entry_point: str) -> str:
    header = re.compile(rf"def\s+{re.escape(entry_point)}")
    fence = reply.find("```")
    if fence >= 0 and (named := header.search(reply, fence + 3)):
        begin = _body(reply, named.end())
        end = reply.find("\n```", begin) if begin >= 0 else -1
        if end >= 0:
            return reply[begin:end]
    for definition in (header.search(reply), re.search("def", reply)):
        if definition and (begin := _body(reply, definition.end())) >= 0:
            return _indented(reply[begin:])
    return textwrap.indent(reply, INDENT)


def _body(text: str, after: int) -> int:
    """Return where a body begins: behind the first colon that ends a line; -1 where there is none."""
    colon = text.find(":\n", after)
    return colon + 2 if colon >= 0 else -1


def _indented(text: str) -> str:
    """Return the first line and what follows as far as it is indented by two spaces or a tab, or empty."""
    first, *lines = text.split("\n")
    kept, count = [first], 1
    for line in lines:
        if line and not line.startswith(("  ", "\t")):
            break
        kept.append(line)
        if line:
            count = len(kept)
    return "\n".join(kept[:count])


def opencompass(output: str, prompt: str, entry_point: str) -> str:
    """OpenCompass, `humaneval_gen_a82cae` of September 2023: the prompt, and what is left after five steps.

    The first fenced block, if there is a fence; without leading imports and everything to the first `def` line behind
    them; before the first blank line; without a leading `def` line; indented. A function with a docstring is cut at
    the docstring's first blank line, or keeps it twice; without one, its blank lines end it.
    """
    text = _first_fence(output)
    if text.lstrip().startswith(("from", "import")):
        definition = text.find("def")
        if definition >= 0:
            text = _next_line(text, definition)
    text = cut(text, "\n\n")
    if text.lstrip().startswith("def"):
        text = text.partition("\n")[2]
    if text.startswith(INDENT):
        return prompt + text
    if text.startswith(" "):
        return prompt + INDENT + text.lstrip()
    return prompt + "\n".join(INDENT + line for line in text.split("\n"))


def _first_fence(text: str) -> str:
    """Return what stands between the first two fences, without the rest of the opening line; all without a fence."""
    pieces = text.split("```", 2)
    if len(pieces) < 3:
        return pieces[-1]  # a fence that is never closed: what follows it, its language included
    return pieces[1] if pieces[1].startswith("\n") else _next_line(pieces[1], 0)


def _next_line(text: str, after: int) -> str:
    """Return what follows the line at `after`; everything, where that is the last one."""
    return text[text.find("\n", after) + 1 :]


def lm_eval(output: str, prompt: str, entry_point: str) -> str:
    """lm-evaluation-harness `humaneval`: the prompt, and the output before whatever ends a function."""
    return prompt + cut(output, *FUNCTION_ENDS)


def signature_and_docstring(prompt: str, entry_point: str) -> tuple[str, str]:
    """Return what Qwen's chat prompt quotes of a HumanEval prompt: the signature, and the docstring, lines stripped.

    The signature runs from the name to the colon that ends its line; the docstring is the first one in the prompt, be
    it of the function asked for or of a helper before it.
    """
    signature = re.search(rf"def\s+({re.escape(entry_point)}[^\n]*?):[^\S\n]*\n", prompt)
    docstring = re.search(r"(?:\"\"\"|''')(.*?)(?:\"\"\"|''')", prompt, re.DOTALL)
    lines = docstring[1].split("\n") if docstring else []
    return signature[1] if signature else entry_point, "\n".join(line.strip() for line in lines)


# ------------------------------------------------------------------------------------------------------ MBPP, published


def mbpp_opencompass(output: str) -> str:
    """OpenCompass, `mbpp_gen_1e1056` of September 2023: what stands between BEGIN and DONE, without outer quotes.

    With or without brackets, so a program with one of the words in it is damaged. A quote directly before the end mark
    is eaten with it: `return 'x'` breaks. Fences stay in the program.
    """
    text = _before_done(output.strip())
    if begin := re.search(r"\[BEGIN\]|BEGIN", text):
        text = text[begin.end() :]
        text = text.removeprefix("'")
    text = text.strip()
    return text.removeprefix("'").removesuffix("'")


def _before_done(text: str) -> str:
    """Cut at the first DONE, and at the quote before it where only space stands between them."""
    done = re.search(r"\[DONE\]|DONE", text)
    if done is None:
        return text
    before = text[: done.start()]
    bare = before.rstrip()
    return bare[:-1] if bare.endswith("'") else before


def mbpp_opencompass_chat(output: str) -> str:
    """OpenCompass' rule of September 2023 for instruction models: the first fenced block, then as `opencompass-2023`.

    Without a fence the first "Here…" loses the rest of its line. What follows `# Test` (four spellings) is dropped.
    """
    text = _first_fence(output) if "```" in output else re.sub(r"Here.*?\n", "", output, count=1)
    return mbpp_opencompass(cut(text, "# Test", "#Test", "#test", "# test"))


# ------------------------------------------------------------------------------------------------------------ standard

# No output is parsed as Python here: a hostile one could end the process that does it.
_CODE_LINE: Final = re.compile(
    r"(?:async\s+def|def|class)\s+\w|import\s+\w|from\s+\S+\s+import\b|[@#]|\"\"\"|'''"
    r"|[A-Za-z_][\w., ]*(?::[^=\n]*)?=[^=]"
)
_PROSE: Final = re.compile(
    r"[A-Z][\w'’-]*(?:\s+[\w'’`*(-]|:(?:\s|$)|[.,!]?\s*$)"
    r"|[-*]\s|\d+[.)]\s|\*\*|>\s|```|[^\x00-\x7f]"
)


def standard(output: str, prompt: str, entry_point: str) -> str:
    """This project's rule: what a reader would run.

    An output that goes on with indented lines continues the prompt, to whatever ends a function. A reply is read: the
    fenced block (else the lines) that define the function are run whole, imports, helpers and all, behind the lines of
    the prompt before the function. A fenced block that does not define it is a body.
    """
    text = cut(output, *CHAT_ENDS)
    if not _continues(text, entry_point):
        program = _defining(text, entry_point)
        if program is not None:
            # An import from the future has to come first.
            future = re.search(r"^from __future__ ", program, re.MULTILINE)
            return program if future else prompt[: max(0, _definition(prompt, entry_point))] + program
        blocks = _blocks(text)
        if blocks:
            return prompt + textwrap.indent(textwrap.dedent(blocks[0]), INDENT)
    return prompt + cut(text, *FUNCTION_ENDS, "\n```")


def mbpp_standard(output: str, entry_point: str) -> str:
    """This project's rule for MBPP: what stands between `[BEGIN]` and `[DONE]`, read as a reply where it is one.

    The fenced block that defines the function, else the lines that define it, else the first fenced block, else
    everything. Quotes around all of it, as OpenCompass' exemplars have them, are taken away.
    """
    text = cut(output, *CHAT_ENDS, "[DONE]")
    text = text.partition("[BEGIN]")[2] if "[BEGIN]" in text else text
    bare = text.strip()
    if bare.startswith("'") and _CODE_LINE.match(bare, 1):
        text = bare[1:].removesuffix("'")
    program = _defining(text, entry_point)
    return next(iter(_blocks(text)), text) if program is None else program


def _continues(text: str, entry_point: str) -> bool:
    """Return whether an output goes on inside the function: its first line that is not blank is indented code."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first.startswith((" ", "\t")) and "```" not in first and _definition(first.lstrip(), entry_point) < 0


def _defining(text: str, entry_point: str) -> str | None:
    """Return the first fenced block that defines the function, else the lines around its definition, else None."""
    for block in map(textwrap.dedent, _blocks(text)):
        if _definition(block, entry_point) >= 0:
            return block
    return _lines_of_code(text, entry_point) or _lines_of_code(textwrap.dedent(text), entry_point)


def _definition(text: str, entry_point: str) -> int:
    """Return where the line stands that defines the function, -1 where there is none."""
    found = re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(entry_point)}\b", text, re.MULTILINE)
    return found.start() if found else -1


def _lines_of_code(text: str, entry_point: str) -> str | None:
    """Return the lines from the first that is code to the last before prose follows the function; None without one."""
    definition = _definition(text, entry_point)
    if definition < 0:
        return None
    before, after = text[:definition].split("\n"), text[definition:].split("\n")
    begin = next((number for number, line in enumerate(before) if _CODE_LINE.match(line)), len(before) - 1)
    end = next((number for number, line in enumerate(after) if number and _PROSE.match(line)), len(after))
    return "\n".join([*before[begin:-1], *after[:end]])


def _blocks(text: str) -> list[str]:
    """Return the fenced blocks of a reply. The last one need not be closed, a closing fence not stand alone."""
    blocks: list[str] = []
    block: list[str] | None = None
    for line in text.split("\n"):
        code, fence, _ = line.partition("```")
        if block is None:
            block = [] if fence else None
        elif fence:
            blocks.append("\n".join([*block, code.rstrip()]))
            block = None
        else:
            block.append(line)
    return blocks if block is None else [*blocks, "\n".join(block)]


HUMANEVAL: Final[Mapping[str, Callable[[str, str, str], str]]] = {
    "standard": standard,
    "qwen": qwen,
    "qwen-chat": qwen_chat,
    "opencompass-2023": opencompass,
    "lm-eval": lm_eval,
}
"""Every rule of HumanEval, spelled as in the tables: from output, prompt and entry point to a program."""

MBPP: Final[Mapping[str, Callable[[str, str], str]]] = {
    "standard": mbpp_standard,
    "opencompass-2023": lambda output, entry_point: mbpp_opencompass(output),
    "opencompass-2023-chat": lambda output, entry_point: mbpp_opencompass_chat(output),
}
"""Every rule of MBPP, spelled as in the tables: from output and entry point to a program."""
