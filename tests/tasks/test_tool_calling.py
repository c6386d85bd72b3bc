"""Tool calling: its prompts are read back, its data is found under the published names, its measures are columns."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_eval import registry
from qwen_eval.commands.score import _summary
from qwen_eval.data import Dataset, find_dataset
from qwen_eval.errors import DataError, UsageError
from qwen_eval.plan import make_plan
from qwen_eval.prompts import Tool, function_declarations, react, read_react
from qwen_eval.registry import Entry
from qwen_eval.reported import every
from qwen_eval.task import Chat, Generate, Verdict

LIST = '[{"name": "city", "description": "城市", "required": true, "schema": {"type": "string"}}, {"name": "days"}]'
SCHEMA = '{"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}'
WEATHER = Tool(name="weather", name_for_human="天气", description="查询天气。", parameters=LIST)
IMAGE = Tool(name="image", name_for_human="图片 (beta)", description="处理图片。\n\n不能画图。", parameters=SCHEMA)
PROMPT = react([WEATHER, IMAGE], "明天杭州天气如何？")


def test_a_prompt_is_read_back() -> None:
    assert read_react(PROMPT) == ([WEATHER, IMAGE], "明天杭州天气如何？")


def test_a_prompt_of_the_servers_is_read_too() -> None:
    served = PROMPT.replace("the following tools", "the following APIs").replace("[weather,image]", "[weather, image]")
    tools, question = read_react(served.replace(" Format the arguments as a JSON object.", ""))
    assert [tool.name for tool in tools] == ["weather", "image"]
    assert [tool.ending for tool in tools] == ["", ""]
    assert [tool.parameters for tool in tools] == [LIST, SCHEMA]
    assert question == "明天杭州天气如何？"


def test_a_description_may_speak_of_parameters_and_formats() -> None:
    tricky = Tool(
        name="a",
        name_for_human="b",
        description='填 Parameters: {"x": 1} 里的值。',
        parameters="[]",
        ending="Be brief.",
    )
    question = "Use the following format:\n\nBegin!\n\nQuestion: 1?"
    assert read_react(react([tricky], question)) == ([tricky], question)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("明天杭州天气如何？", "found none"),
        (
            PROMPT.replace("[weather,image]", "[weather,images]"),
            "whose tools are weather, images, found weather, image",
        ),
        (PROMPT.replace("Begin!", "Go!"), "Expected a ReAct prompt"),
        (PROMPT.replace(LIST, "none"), "Expected JSON behind 'Parameters:' of the tool weather"),
    ],
)
def test_another_text_is_a_plain_error(prompt: str, found: str) -> None:
    with pytest.raises(DataError, match=found):
        read_react(prompt)


def test_parameters_become_json_schemas() -> None:
    weather, image = json.loads(function_declarations([WEATHER, IMAGE]))
    assert weather["type"] == image["type"] == "function"
    assert weather["function"]["description"] == "查询天气。"
    assert weather["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "城市"},
            "days": {"type": "string", "description": ""},
        },
        "required": ["city"],
    }
    assert image["function"]["parameters"] == json.loads(SCHEMA)


@pytest.mark.parametrize("parameters", ['["city"]', '[{"description": "城市"}]', "3"])
def test_parameters_of_another_form_are_a_plain_error(parameters: str) -> None:
    with pytest.raises(DataError, match="Expected a list of parameters with their names, or a JSON schema"):
        function_declarations([Tool(name="a", name_for_human="b", description="c", parameters=parameters)])


# ------------------------------------------------------------------------------------------------------------ the task


@pytest.fixture
def entry(entries: dict[str, Entry]) -> Entry:
    return entries["tool_calling"]


@pytest.mark.parametrize("protocol", ["20230803", "20231206"])
def test_a_stored_prompt_is_sent_as_it_is(entry: Entry, mini: Callable[[str], Dataset], protocol: str) -> None:
    plan = make_plan(entry.task, registry.protocol(entry.task, protocol), mini("tool_calling"))
    assert len(plan.samples) == 84
    for sample, request in plan.first_requests():
        assert isinstance(request, Generate)
        assert isinstance(request.prompt, Chat)
        assert [turn.role for turn in request.prompt.turns] == ["system", "user"]
        assert request.prompt.turns[1].content == sample.row["prompt"]
        assert (request.max_new_tokens, request.stops, request.own_penalty) == (512, (), True)


def test_native_asks_the_same_with_declared_functions(entry: Entry, mini: Callable[[str], Dataset]) -> None:
    plan = make_plan(entry.task, registry.protocol(entry.task, "native"), mini("tool_calling"))
    for sample, request in plan.first_requests():
        assert isinstance(request, Generate)
        assert isinstance(request.prompt, Chat)
        tools, question = read_react(sample.row["prompt"])
        assert request.prompt.turns[1].content == question
        declared = [each["function"]["name"] for each in json.loads(request.prompt.tools)]
        assert declared == [tool.name for tool in tools]
        assert (request.max_new_tokens, request.stops, request.own_penalty) == (512, (), True)


@pytest.fixture
def published(tmp_path: Path, entry: Entry) -> Callable[..., Dataset]:
    """A data folder with made-up files under the published names."""

    def write(version: str, **extra: list[object]) -> Dataset:
        for group in ("positive", "negative"):
            ids = extra.get(group, [None, None])
            rows = [
                {"prompt": f"{group} {number}", "response": "Final Answer: 好"} | ({} if each is None else {"id": each})
                for number, each in enumerate(ids)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"exam_plugin_{version}_react_{group}.jsonl").write_text(text)
        return find_dataset(entry.task.data, tasks=entry.folder, data_dir=tmp_path, network=False)

    return write


@pytest.mark.parametrize(("protocol", "version"), [("20230803", "v1"), ("20231206", "v20231206")])
def test_published_files_are_found(
    published: Callable[..., Dataset], entry: Entry, protocol: str, version: str
) -> None:
    plan = make_plan(entry.task, registry.protocol(entry.task, protocol), published(version))
    assert [sample.id for sample in plan.samples] == ["positive/0", "positive/1", "negative/0", "negative/1"]
    assert [sample.row["prompt"] for sample in plan.samples][1:3] == ["positive 1", "negative 0"]


@pytest.mark.parametrize(
    ("positive", "negative", "ids"),
    [
        ([7, 8], ["n1", "n2"], ["7", "8", "n1", "n2"]),
        ([0, 1], [0, 1], ["positive/0", "positive/1", "negative/0", "negative/1"]),
        ([1, None], [2, 3], ["positive/0", "positive/1", "negative/0", "negative/1"]),
    ],
)
def test_ids_of_the_data_are_kept_where_they_tell_rows_apart(
    published: Callable[..., Dataset], entry: Entry, positive: list[object], negative: list[object], ids: list[str]
) -> None:
    dataset = published("v20231206", positive=positive, negative=negative)
    assert [sample.id for sample in entry.task.samples(dataset, "20231206")] == ids


def test_measures_have_published_counterparts(entry: Entry) -> None:
    metrics = {row.metric for row in every() if row.task == "tool_calling"}
    assert {measure.reported for measure in entry.task.measures} - {""} == metrics


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--task", "tool_calling@20230803"], 1),
        (["--task", "tool_calling@20231206"], 0),
        (["--task", "tool_calling"], 0),
        (["--task", "tool_calling", "--split", "20230803"], 1),
    ],
)
def test_outputs_are_scored_by_the_version_that_was_named(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, with_vocabulary: None, words: list[str], right: int
) -> None:
    for version, tool in (("v1", "weather"), ("v20231206", "image")):
        for group in ("positive", "negative"):
            row = {"prompt": PROMPT, "response": f"Thought: .\nAction: {tool}\nAction Input: {{}}\nObservation: 好"}
            (tmp_path / f"exam_plugin_{version}_react_{group}.jsonl").write_text(json.dumps(row) + "\n")
    # A gold of one's own has no say: the rules need the prompt too.
    output = {"id": "positive/0", "output": "好\nAction: weather\nAction Input: {}", "gold": "whatever"}
    (tmp_path / "in.jsonl").write_text(json.dumps(output) + "\n")
    given = ["--rule", "qwen", "--input", "in.jsonl", "--output", "out.jsonl", "--data-dir", str(tmp_path)]
    code, _, err = cli("score", *words, *given)
    assert code == 0, err
    assert f"tool_calling, qwen: {right} of 1 correct" in err


@pytest.mark.parametrize("protocol", ["20230803", "20231206"])
def test_a_version_is_not_run_on_the_other_ones_data(
    published: Callable[..., Dataset], mini: Callable[[str], Dataset], entry: Entry, protocol: str
) -> None:
    [other] = {"20230803", "20231206"} - {protocol}
    published("v1")
    with pytest.raises(UsageError, match=f"tool_calling@{protocol} is evaluated on {protocol}"):
        make_plan(entry.task, registry.protocol(entry.task, protocol), published("v20231206"), split=other)
    native = make_plan(entry.task, registry.protocol(entry.task, "native"), mini("tool_calling"), split="20230803")
    assert native.split == "20230803"


def test_scored_outputs_are_summed_up_on_the_scales_of_the_tables(entry: Entry) -> None:
    measures = {"tool selection": (1.0,), "tool input": (0.131,)}
    words = _summary(entry.task, [("positive", Verdict(True, "weather", measures=measures))])
    assert words == "1 of 1 correct (100.0 %), tool selection 100.0 %, tool input 0.131"
