"""BFCL: the single-turn part of the Berkeley Function-Calling Leaderboard, version 4 (https://openreview.net/forum?id=2GmDdhBdDk).

Given a question and the declarations of functions, a model is to call the right ones with the right arguments, or none
where none fits. Nothing is run: calls are compared with a list of accepted values for every argument.
A row (made up), and its reference: {"id": "simple_python_7", "question": [[{"role": "user", "content": "2 km is?"}]],
"function": [{"name": "units.convert", "parameters": {"type": "dict", "properties": {"km": {"type": "float"}}, …}}]},
{"id": "simple_python_7", "ground_truth": [{"units.convert": {"km": [2.0]}}]}

Two protocols (functions declared natively, or in a system prompt) and three rules (`qwen_eval/scorers/bfcl.py`).
Score: accuracy over the 3,641 items; the leaderboard's own averages stand beside it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from qwen_eval.scorers import bfcl
from qwen_eval.task import (
    Chat,
    DatasetSpec,
    Generate,
    Measure,
    Protocol,
    Row,
    Rows,
    Rule,
    Sample,
    SplitSpec,
    Task,
    Turn,
    Verdict,
    Wheel,
)

NON_LIVE: Final = ("simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple")
LIVE: Final = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
IRRELEVANCE: Final = ("irrelevance", "live_irrelevance")
RELEVANCE: Final = ("live_relevance",)

DATA = DatasetSpec(
    name="bfcl",
    licence="Apache-2.0",
    homepage="https://gorilla.cs.berkeley.edu/leaderboard.html",
    url="",
    splits={
        "test": SplitSpec(
            file="BFCL_v4_{group}.json",
            columns=("id", "question", "function"),
            structured=("question", "function"),
            lines=True,
            rows=3641,
            fingerprint="d70f99acfe2bd011",
        ),
        "answers": SplitSpec(
            file="possible_answer/BFCL_v4_{group}.json",
            columns=("id", "ground_truth"),
            structured=("ground_truth",),
            lines=True,
            groups=(*NON_LIVE, *LIVE),
            rows=2501,
            fingerprint="3c47e530e18d97b2",
        ),
    },
    groups=(*NON_LIVE, *LIVE, *IRRELEVANCE, *RELEVANCE),
    mini_groups=(*NON_LIVE, *LIVE, *IRRELEVANCE, *RELEVANCE),
    folders=("bfcl", "bfcl_eval/data", "."),
    wheel=Wheel(
        package="bfcl-eval",
        version="2026.3.23",
        sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        inside="bfcl_eval/data",
    ),
)

# Items that a reply with the meant arguments fails: the reference lacks a required argument, has one that is not
# declared, or holds what the checker never reads out of a reply.
BAD_GOLDS: Final = (
    "simple_java_36",
    "simple_java_64",
    "simple_java_65",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "live_multiple_507-149-4",
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
)

NO_CALL: Final = "no call"
SOME_CALL: Final = "a call"


def samples(dataset: Rows, split: str) -> list[Sample]:
    """Every row is a sample under its own id; its gold is the reference, or whether there is to be a call at all."""
    golds = {row["id"]: row["ground_truth"] for row in dataset.rows("answers")}
    golds |= {row["id"]: NO_CALL for row in dataset.rows(split) if row["group"] in IRRELEVANCE}
    golds |= {row["id"]: SOME_CALL for row in dataset.rows(split) if row["group"] in RELEVANCE}
    return [Sample(row["id"], row, golds[row["id"]], row["group"]) for row in dataset.rows(split)]


def turns(row: Row) -> tuple[Turn, ...]:
    """The conversation; single-turn items have one list of messages."""
    return tuple(Turn(each["role"], each["content"]) for each in json.loads(row["question"])[0])


# -------------------------------------------------------------------------------------------------------- declarations

HINTS: Final = {
    "simple_java": " Note that the provided function is in Java 8 SDK syntax.",
    "simple_javascript": " Note that the provided function is in JavaScript syntax.",
}
PYTHON_HINT: Final = " Note that the provided function is in Python 3 syntax."
LANGUAGES: Final = {"simple_java": "Java", "simple_javascript": "JavaScript"}


def declarations(row: Row) -> list[dict[str, Any]]:
    """The functions as a model is told of them: with the language in words, and Java and JavaScript types as text."""
    group = row["group"]
    functions: list[dict[str, Any]] = json.loads(row["function"])
    for function in functions:
        function["description"] += HINTS.get(group, PYTHON_HINT)
        if group in LANGUAGES:
            properties = function["parameters"]["properties"]
            for name, declared in properties.items():
                properties[name] = in_words(declared, LANGUAGES[group])
    return functions


def in_words(declared: Mapping[str, Any], language: str) -> dict[str, Any]:
    """A parameter of Java or JavaScript: a string, whose description says the type."""
    kind, told = declared["type"], dict(declared)
    said = f"This is {language} {kind} type parameter in string representation."
    if kind == "any":
        said = f"This parameter can be of any type of {language} object in string representation."
    told["description"] += f" {said}"
    if kind in ("Array", "ArrayList", "array"):
        inner = told.pop("items")["type"]
        told["description"] += f" The list elements are of type {inner}; they are not in string representation."
    if language == "JavaScript" and kind == "dict" and "properties" in told:
        schema = json.dumps(told.pop("properties"))
        told["description"] += (
            f" The dictionary entries have the following schema; they are not in string representation. {schema}"
        )
    return told | {"type": "string"}


JSON_TYPES: Final = {
    "integer": "integer",
    "number": "number",
    "float": "number",
    "string": "string",
    "boolean": "boolean",
    "array": "array",
    "tuple": "array",
    "dict": "object",
    "object": "object",
    "any": "string",
}


def tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration in the form of endpoints and chat templates: JSON Schema's types, no dots in the name."""
    parameters = function["parameters"]
    schema = parameters | {"type": "object", "properties": schemas(parameters["properties"])}
    return {"type": "function", "function": {**function, "name": bfcl.escaped(function["name"]), "parameters": schema}}


def schemas(properties: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parameters with JSON Schema's types. The package's rewriting, with what it leaves as it is."""
    return {name: schema(declared) for name, declared in properties.items()}


def schema(declared: Mapping[str, Any]) -> dict[str, Any]:
    """One parameter. What `items` hold is rewritten two levels deep, a list of lists of objects not any more."""
    told = dict(declared)
    if told.get("type") == "float":
        told |= {"format": "float", "description": f"{told.get('description', '')} This is a float type value."}
    told["type"] = JSON_TYPES.get(told.get("type", ""), "string")
    if told["type"] not in ("array", "object"):
        return told
    if "properties" in told:
        told["properties"] = schemas(told["properties"])
    elif "items" in told:
        items = told["items"] | {"type": JSON_TYPES[told["items"]["type"]]}
        if items["type"] == "array" and "items" in items:
            items["items"] = items["items"] | {"type": JSON_TYPES[items["items"]["type"]]}
        elif items["type"] == "object" and "properties" in items:
            items["properties"] = schemas(items["properties"])
        told["items"] = items
    return told


# ------------------------------------------------------------------------------------------------------------- prompts

# The package's default of the 26 variations of its format-sensitivity test: Python calls, no tag, JSON declarations.
SYSTEM: Final = (
    "You are an expert in composing functions.You are given a question and a set of possible functions. Based on the "
    "question, you will need to make one or more function/tool calls to achieve the purpose. If none of the functions "
    "can be used, point it out. If the given question lacks the parameters required by the function, also point it "
    "out.\n\nYou should only return the function calls in your response.\n\nIf you decide to invoke any of the "
    "function(s), you MUST put it in the format of [func_name1(params_name1=params_value1, "
    "params_name2=params_value2...), func_name2(params)].  You SHOULD NOT include any other text in the response.\n\n"
    "At each turn, you should try your best to complete the tasks requested by the user within the current turn. "
    "Continue to output functions to call until you have fulfilled the user's request to the best of your ability. "
    "Once you have no more functions to call, the system will consider the current turn complete and proceed to the "
    "next turn or task.\n\nHere is a list of functions in json format that you can invoke.\n"
)
MAX_NEW_TOKENS: Final = 4096
"""The package's own limit for models that it runs itself."""


def native(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The conversation as it is, with the functions declared as tools."""

    def request(sample: Sample) -> Generate:
        tools = json.dumps([tool(function) for function in declarations(sample.row)], ensure_ascii=False)
        return Generate(prompt=Chat(turns(sample.row), tools=tools), max_new_tokens=MAX_NEW_TOKENS)

    return request


def prompted(dataset: Rows, shots: int) -> Callable[[Sample], Generate]:
    """The package's system prompt with the functions in it, before the item's own system turn where it has one."""

    def request(sample: Sample) -> Generate:
        system = f"{SYSTEM}{json.dumps(declarations(sample.row), indent=4)}\n"
        said: Sequence[Turn] = turns(sample.row)
        if said[0].role == "system":
            system, said = f"{system}\n\n{said[0].content}", said[1:]
        return Generate(prompt=Chat((Turn("system", system), *said)), max_new_tokens=MAX_NEW_TOKENS)

    return request


# ----------------------------------------------------------------------------------------------------------- averages

# The leaderboard's averages, and how often an item of a category counts in one, so that over the whole benchmark the
# weighted mean is the published one. Non-live is the mean of four numbers, the first of which is the mean over three
# languages: 400 x 1 = 100 x 4 = 50 x 8 items, and three times as many of each of the others. Irrelevance is the mean of
# two numbers: 240 x 221 = 884 x 60. Live is the mean over items.
COUNTED: Final = {
    "simple_python": ("non_live", 1),
    "simple_java": ("non_live", 4),
    "simple_javascript": ("non_live", 8),
    "multiple": ("non_live", 6),
    "parallel": ("non_live", 6),
    "parallel_multiple": ("non_live", 6),
    **dict.fromkeys(LIVE, ("live", 1)),
    "irrelevance": ("irrelevance", 221),
    "live_irrelevance": ("irrelevance", 60),
    "live_relevance": ("relevance", 1),
}


def counted(rule: Callable[[str, Sample], Verdict]) -> Rule:
    """The rule, with each verdict counted in the average of the leaderboard that it belongs to."""

    def scored(output: str, sample: Sample) -> Verdict:
        verdict = rule(output, sample)
        return replace(verdict, measures={COUNTED[sample.group][0]: (float(verdict.correct),)})

    return scored


TASK = Task(
    name="bfcl",
    title="BFCL v4 (single-turn)",
    paper="https://openreview.net/forum?id=2GmDdhBdDk",
    data=DATA,
    samples=samples,
    rules={name: counted(rule) for name, rule in bfcl.RULES.items()},
    measures=tuple(
        Measure(
            name=average,
            title=title,
            weights={category: times for category, (counted_in, times) in COUNTED.items() if counted_in == average},
        )
        for average, title in {
            "non_live": "Non-live",
            "live": "Live",
            "irrelevance": "Irrelevance",
            "relevance": "Relevance",
        }.items()
    ),
    categories={
        "Simple": ("simple_python", "simple_java", "simple_javascript", "live_simple"),
        "Multiple": ("multiple", "live_multiple"),
        "Parallel": ("parallel", "live_parallel"),
        "Parallel multiple": ("parallel_multiple", "live_parallel_multiple"),
        "No function fits": IRRELEVANCE,
        "Some function fits": RELEVANCE,
    },
    bad_golds=BAD_GOLDS,
    protocols=(
        Protocol(
            name="native",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="native",
            build=native,
            about="Functions declared as tools: by the chat template, or in the tools field of an endpoint",
        ),
        Protocol(
            name="prompted",
            chat=True,
            shots=0,
            shots_allowed=range(1),
            rule="prompted",
            build=prompted,
            about="The leaderboard's system prompt; calls in the syntax of Python, Java or JavaScript",
        ),
    ),
)
