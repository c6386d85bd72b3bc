"""How prompts become text: exemplars, options, chat turns.

Two renderings of a conversation are fixed text here; every other one is the model's own chat template.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qwen_eval.errors import DataError
from qwen_eval.task import Chat, LeftCut, Prompt, Row, Turn

__all__ = [
    "DEFAULT_SYSTEM",
    "LETTERS",
    "OPENCOMPASS_CUT",
    "Tool",
    "as_text",
    "chat",
    "chatml",
    "evalplus_chat",
    "function_declarations",
    "lettered",
    "opencompass_chat",
    "opencompass_chatml",
    "react",
    "read_react",
]

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn of Qwen's chat scripts."""

LETTERS = ("A", "B", "C", "D")

OPENCOMPASS_CUT = LeftCut(over=1536, keep=1536)
"""The left cut of OpenCompass' generation in 2023: a window of 2,048 tokens less 512 new ones."""


def lettered(row: Row, letters: Sequence[str] = LETTERS) -> str:
    """Return the options of a multiple-choice row, one a line: `A. …`, no newline at the end."""
    return "\n".join(f"{letter}. {row[letter]}" for letter in letters)


def chat(text: str) -> Chat:
    """Return one user turn after the default system turn: the prompt of Qwen's chat scripts."""
    return Chat((Turn("system", DEFAULT_SYSTEM), Turn("user", text)))


def evalplus_chat(problem: str) -> Chat:
    """Return EvalPlus' instruction around a problem in a fence; its prefilled beginning of the reply is left out."""
    asked = "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    return Chat((Turn("user", f"{asked}\n```\n{problem.strip()}\n```\n"),))


def opencompass_chat(rounds: Sequence[tuple[str, str]], text: str) -> Chat:
    """Return few-shot (user, assistant) rounds and a last user turn, in OpenCompass' form: no system turn."""
    shots = [turn for user, assistant in rounds for turn in (Turn("user", user), Turn("assistant", assistant))]
    return Chat((*shots, Turn("user", text)), form="opencompass")


def as_text(prompt: Prompt) -> str:
    """Render a prompt where there is no model: ChatML, declared tools as one line of JSON before it."""
    if isinstance(prompt, str):
        return prompt
    tools = f"tools: {prompt.tools}\n" if prompt.tools else ""
    return f"{tools}{(opencompass_chatml if prompt.form == 'opencompass' else chatml)(prompt.turns)}{prompt.begun}"


def chatml(turns: Sequence[Turn]) -> str:
    """Render ChatML up to the point where the assistant speaks (Qwen README, "ChatML")."""
    said = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    return f"{said}<|im_start|>assistant\n"


def opencompass_chatml(turns: Sequence[Turn]) -> str:
    """Render the ChatML of OpenCompass' 2023 Qwen meta template: every turn *begins* with a newline, also the first."""
    said = "".join(f"\n<|im_start|>{turn.role}\n{turn.content}<|im_end|>" for turn in turns)
    return f"{said}\n<|im_start|>assistant\n"


# ---------------------------------------------------------------------------------------------------------- ReAct


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool in a ReAct prompt: the name that a model writes, the one for people, what it does, its parameters.

    `parameters` is JSON text: a list with `name`, `description`, `required` and `schema` of each, as in Qwen's
    documentation of 2023, or a JSON schema. `ending` says how the arguments are to be written.
    """

    name: str
    name_for_human: str
    description: str
    parameters: str
    ending: str = "Format the arguments as a JSON object."


_FORMAT: Final = """Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """


def react(tools: Sequence[Tool], question: str) -> str:
    """Return the ReAct prompt of Qwen's documentation and benchmarks (2023), for one user turn."""
    described = [
        f"{tool.name}: Call this tool to interact with the {tool.name_for_human} API. What is the "
        f"{tool.name_for_human} API useful for? {tool.description} Parameters: {tool.parameters} {tool.ending}".rstrip()
        for tool in tools
    ]
    begin = "Answer the following questions as best you can. You have access to the following tools:"
    form = _FORMAT.format(names=",".join(tool.name for tool in tools))
    return "\n\n".join([begin, *described, f"{form}{question}"])


_TOOL: Final = re.compile(
    r"^(?P<name>[^\n:]+): Call this (?:tool|API) to interact with the (?P<human>[^\n]*?) API\. "
    r"What is the (?P=human) API useful for\? ",
    re.MULTILINE,
)


def read_react(prompt: str) -> tuple[list[Tool], str]:
    """Return the tools and the question of a ReAct prompt, also of its variants; raises DataError for another text.

    The variants are those of Qwen's servers: "the following APIs", names listed with a space between, no ending.
    """
    described, form, rest = prompt.partition("\n\nUse the following format:\n\n")
    names = re.search(r"\nAction: the action to take, should be one of \[([^\n]*)\]\n", rest)
    _, begun, question = rest.partition("\nBegin!\n\nQuestion: ")
    heads = list(_TOOL.finditer(described))
    borders = [*(head.start() for head in heads), len(described)]
    tools = [
        _read_tool(head, described[head.end() : end].rstrip()) for head, end in zip(heads, borders[1:], strict=True)
    ]
    listed = [name.strip() for name in names[1].split(",")] if names else []
    if not form or not begun or listed != [tool.name for tool in tools]:
        raise DataError(
            f"Expected a ReAct prompt whose tools are {', '.join(listed) or 'listed'}, found "
            f"{', '.join(tool.name for tool in tools) or 'none'} in {prompt[:60]!r}…"
        )
    return tools, question


def _read_tool(head: re.Match[str], text: str) -> Tool:
    """A tool from its block: the parameters are the JSON behind the last "Parameters:" that has any."""
    for cue in reversed(list(re.finditer(r"(?:^| )Parameters: ?", text))):
        try:
            _, end = json.JSONDecoder().raw_decode(text, cue.end())
        except ValueError:
            continue
        return Tool(
            name=head["name"],
            name_for_human=head["human"],
            description=text[: cue.start()],
            parameters=text[cue.end() : end],
            ending=text[end:].strip(),
        )
    raise DataError(f"Expected JSON behind 'Parameters:' of the tool {head['name']}, found {text[-60:]!r}.")


def function_declarations(tools: Sequence[Tool]) -> str:
    """Return tools as the JSON text of a list of functions, in the form that chat templates and endpoints take."""
    declared = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": _json_schema(tool)},
        }
        for tool in tools
    ]
    return json.dumps(declared, ensure_ascii=False)


def _json_schema(tool: Tool) -> dict[str, object]:
    found = json.loads(tool.parameters)
    if isinstance(found, dict):
        return {"type": "object", "properties": {}, **found}
    try:
        properties = {each["name"]: _property(each) for each in found}
        required = [each["name"] for each in found if each.get("required")]
    except (AttributeError, KeyError, TypeError):
        raise DataError(
            f"Expected a list of parameters with their names, or a JSON schema, as the parameters of the tool "
            f"{tool.name}, found {tool.parameters[:60]!r}."
        ) from None
    return {"type": "object", "properties": properties, "required": required}


def _property(parameter: Mapping[str, Any]) -> dict[str, Any]:
    schema = parameter.get("schema") or {"type": parameter.get("type", "string")}
    return {**schema, "description": parameter.get("description", "")}
