"""A model behind an endpoint, against a small server that checks what it is sent and fails as servers do."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OPENAI, Reply, Server, error, logprob, serving, slowly, tokens

from qwen_eval.errors import ModelError, UsageError
from qwen_eval.models import connection
from qwen_eval.models.connection import Address, Pool
from qwen_eval.models.endpoint import EndpointModel, JudgeEndpoint
from qwen_eval.results import StoredAnswer
from qwen_eval.task import (
    Answer,
    Chat,
    Choose,
    Chosen,
    Failed,
    Generate,
    Generated,
    Judge,
    LeftCut,
    Perplexity,
    Request,
    Sampling,
    Turn,
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # The client's own pauses between tries, a hundredth as long.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def user(text: str, **more: Any) -> Chat:
    return Chat((Turn("user", text),), **more)


def hello(**more: Any) -> Generate:
    return Generate(prompt=user("hello"), **more)


def ask(model: EndpointModel, *requests: Request) -> list[Answer | Failed]:
    answers: dict[int, Answer | Failed] = {}
    for ticket, request in enumerate(requests):
        model.submit(ticket, request)
    while collected := model.collect():
        answers |= dict(collected)
    return [answers[ticket] for ticket in range(len(requests))]


def one(server: Server, request: Request) -> Generated:
    [answer] = ask(EndpointModel(server.name), request)
    assert isinstance(answer, Generated), answer
    return answer


def failure(server: Server, request: Request) -> str:
    [answer] = ask(EndpointModel(server.name), request)
    assert isinstance(answer, Failed), answer
    assert "\n" not in answer.reason
    return answer.reason


# ------------------------------------------------------------------------------------------------- what is sent


def test_a_conversation_goes_to_the_servers_template_and_text_is_continued(server: Server) -> None:
    chat = Chat((Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c d")))
    answer = one(server, Generate(prompt=chat, max_new_tokens=7))
    assert answer == Generated(text="You said: c d", finish="end", prompt_tokens=2, new_tokens=4)
    assert one(server, Generate(prompt="c d", max_new_tokens=7, stops=("\n",))).text == "You said: c d"
    assert server.asked == [
        {
            "model": "toy",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c d"},
            ],
            **{"max_tokens": 7, "temperature": 0, "repetition_penalty": 1.0},
        },
        {"model": "toy", "prompt": "c d", "max_tokens": 7, "temperature": 0, "stop": ["\n"], "repetition_penalty": 1.0},
    ]


def test_the_form_of_a_conversation_is_the_servers(server: Server) -> None:
    one(server, Generate(prompt=user("hello", form="opencompass")))
    assert server.prompts == ["hello"]


def test_a_published_repetition_penalty_is_left_to_the_server(server: Server) -> None:
    one(server, hello(own_penalty=True))
    assert "repetition_penalty" not in server.asked[0]


def test_sampling_leaves_nothing_to_the_servers_defaults(server: Server) -> None:
    one(server, hello(sampling=Sampling(temperature=0.7, top_p=0.9, seed=2**64 - 1)))
    one(server, hello(sampling=Sampling(temperature=0.7, top_k=20, seed=5)))
    drawn = [{name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")} for body in server.asked]
    assert drawn == [
        {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "seed": 2**31 - 1},
        {"temperature": 0.7, "top_p": 1.0, "top_k": 20, "min_p": 0.0, "seed": 5},
    ]


def test_a_turn_that_has_begun_is_continued(server: Server) -> None:
    one(server, Generate(prompt=user("count", begun="One, two")))
    [body] = server.asked
    assert body["messages"][-1] == {"role": "assistant", "content": "One, two"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_server_that_cannot_continue_a_turn_gives_no_answer(server: Server) -> None:
    server.fields = OPENAI
    assert "add_generation_prompt" in failure(server, Generate(prompt=user("count", begun="One")))


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_declared_tools_are_sent_and_calls_come_back_as_text(server: Server) -> None:
    server.speak = lambda prompt: "Let me see."
    server.tool_calls = [("add", '{"a": 1, "b": "zwei ü"}'), ("add", "{broken"), ("say", '{"text": "</tool_call>"}')]
    text = one(server, Generate(prompt=user("1+2?", tools=json.dumps(TOOLS)))).text
    assert server.asked[0]["tools"] == TOOLS
    first, *blocks = text.split("\n<tool_call>\n")
    assert first == "Let me see."
    assert [block.count("\n</tool_call>") for block in blocks] == [1, 1, 1]
    assert [json.loads(block.removesuffix("\n</tool_call>")) for block in blocks] == [
        {"name": "add", "arguments": {"a": 1, "b": "zwei ü"}},
        {"name": "add", "arguments": "{broken"},
        {"name": "say", "arguments": {"text": "</tool_call>"}},
    ]
    assert "zwei ü" in text


def test_a_call_alone_begins_the_text(server: Server) -> None:
    server.speak = lambda prompt: ""
    server.tool_calls = [("add", '{"a": 1}')]
    answer = one(server, Generate(prompt=user("1+2?", tools=json.dumps(TOOLS))))
    assert answer.text == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert answer.finish == "end"


# ------------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    ("spoken", "stops", "text", "finish"),
    [
        ("one two three", (), "one two three", "end"),
        ("one. two", (".",), "one", "stop"),
        ("a b c d e f g h", (), "a b c d", "length"),
        ("one; two", ("a", "b", "c", "d", ";"), "one", "stop"),
        ("one; two, three", (";", ","), "one", "stop"),
        ("", (), "", "end"),
    ],
)
def test_an_answer_ends_as_the_local_engine_ends_it(
    server: Server, spoken: str, stops: tuple[str, ...], text: str, finish: str
) -> None:
    server.speak = lambda prompt: spoken
    answer = one(server, Generate(prompt="go", max_new_tokens=4, stops=stops))
    assert (answer.text, answer.finish) == (text, finish)


def test_more_stop_strings_than_the_api_takes_cut_all_the_same(server: Server) -> None:
    server.speak = lambda prompt: "one; two"
    answer = one(server, Generate(prompt="go", stops=("a", "b", "c", "d", ";")))
    assert (answer.text, answer.finish) == ("one", "stop")
    assert server.asked[0]["stop"] == ["a", "b", "c", "d"]


def test_a_server_that_keeps_the_stop_string_is_cut(server: Server) -> None:
    server.misbehave = lambda body, number: Reply(200, {"choices": [{"finish_reason": "stop", "text": "one\ntwo"}]})
    answer = one(server, Generate(prompt="go", stops=("\n",)))
    assert answer == Generated(text="one", finish="stop", prompt_tokens=0, new_tokens=0)


@pytest.mark.parametrize("text", ["\x00\x1b[31m\x7f", "\ud800 alone", "𝕏 ü 漢字 \u2028", "<tool_call>", "\r\n\t"])
def test_any_text_comes_through_and_can_be_stored(server: Server, text: str) -> None:
    server.speak = lambda prompt: text
    answer = one(server, Generate(prompt=f"say {text}"))
    assert answer.text == text
    assert server.prompts == [f"say {text}"]
    stored = StoredAnswer("0", 0, "hash", answer)
    assert StoredAnswer.parse(stored.line().encode("utf-8", "surrogatepass").removesuffix(b"\n")) == stored


@pytest.mark.parametrize("finish", ["content_filter", "abort", "error"])
def test_an_answer_that_was_broken_off_is_none(server: Server, finish: str) -> None:
    server.finish = finish
    assert f"finish_reason '{finish}'" in failure(server, hello())


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [',
        b"<html>Bad Gateway</html>",
        b"[]",
        {"choices": []},
        {"choices": None},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"finish_reason": "stop", "message": None}]},
        {"choices": [{"finish_reason": "stop", "message": {"content": [1]}}]},
        {"choices": [{"finish_reason": "stop", "text": None}]},
        {"choices": [{"finish_reason": "stop", "message": {"content": "", "tool_calls": [{"id": "1"}]}}]},
        b"[" * 100_000,
    ],
)
def test_an_answer_in_another_form_is_none(server: Server, body: Any) -> None:
    server.misbehave = lambda asked, number: Reply(200, body)
    assert "the server's answer" in failure(server, hello())


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "failing",
    [
        Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
        Reply(500, b"oops"),
        Reply(503, b""),
        Reply(0, b""),
        Reply(200, {"choices": [{"finish_reason": "stop", "text": "half an answer"}]}, cut=True),
    ],
    ids=["rate", "error", "busy", "hung up", "cut off"],
)
def test_what_fails_for_a_passing_reason_is_asked_again(server: Server, failing: Reply) -> None:
    server.misbehave = lambda body, number: failing if number < 3 else None
    assert one(server, hello()).text == "You said: hello"
    assert len(server.asked) == 3


def test_as_long_as_the_server_says_is_waited(server: Server) -> None:
    times: list[float] = []

    def busy(body: Any, number: int) -> Reply | None:
        times.append(time.monotonic())
        return Reply(429, {}, {"Retry-After": "0.5"}) if number == 1 else None

    server.misbehave = busy
    one(server, hello())
    assert times[1] - times[0] >= 0.5


def test_what_goes_on_failing_is_an_error_in_one_line(server: Server) -> None:
    server.misbehave = lambda body, number: error(503, "The engine\nis dead.")
    assert failure(server, hello()) == "HTTP 503: The engine is dead."
    assert len(server.asked) == 1 + connection.RETRIES


def test_a_server_that_takes_too_long_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SECONDS", 0.2)
    monkeypatch.setattr(connection, "RETRIES", 1)
    server.speak = slowly(0.6)
    assert "no answer within" in failure(server, hello())
    assert len(server.asked) == 2


def test_a_prompt_beyond_the_window_is_an_error_that_says_so(server: Server) -> None:
    server.window = 100
    reason = failure(server, Generate(prompt="word " * 90, max_new_tokens=20))
    assert reason.startswith("prompt and answer do not fit the server's window: HTTP 400")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ("'max_tokens' is too large: 512. This model's maximum context length is 4096 tokens.", True),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", True),
        ("the request exceeds the available context size (4096 tokens)", True),
        ("Prompt is too long: 9000 tokens > 8192 maximum", True),
        ("Invalid 'stop': array too long. Expected an array with maximum length 4", False),
        ("temperature must be at most 2", False),
    ],
)
def test_servers_say_in_their_own_words_that_a_prompt_is_too_long(server: Server, said: str, length: bool) -> None:
    server.misbehave = lambda body, number: error(400, said)
    assert (
        failure(server, hello()) == "prompt and answer do not fit the server's window: " * length + f"HTTP 400: {said}"
    )


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "'repetition_penalty' is not a known parameter"),
        Reply(422, {"detail": [{"loc": ["body", "repetition_penalty"], "msg": "Extra inputs are not permitted"}]}),
        Reply(400, b"unknown field repetition_penalty"),
    ],
)
def test_a_server_that_does_not_know_a_field_is_asked_without(server: Server, reply: Reply) -> None:
    server.misbehave = lambda body, number: reply if "repetition_penalty" in body else None
    said: list[str] = []
    model = EndpointModel(server.name, concurrency=1, say=said.append)
    answers = ask(model, hello(), hello())
    assert all(isinstance(answer, Generated) for answer in answers)
    assert ["repetition_penalty" in body for body in server.asked] == [True, False, False]
    assert said == ["toy: the server does not take repetition_penalty; asked without."]


def test_openai_proper_takes_what_is_asked(server: Server) -> None:
    server.fields = OPENAI
    model = EndpointModel(server.name, concurrency=1, say=lambda line: None)
    drawn = hello(sampling=Sampling(temperature=1.0))
    assert [type(answer) for answer in ask(model, drawn, drawn)] == [Generated, Generated]
    assert len(server.asked) == 5  # one field more is refused each time, then none


def test_an_error_that_repeats_the_request_takes_no_field_away(server: Server) -> None:
    def refuse(body: Any, number: int) -> Reply | None:
        return error(400, f"Invalid request: {json.dumps(body)}") if number <= 2 else None

    server.misbehave = refuse
    model = EndpointModel(server.name, concurrency=1)
    first, second = ask(model, hello(), hello())
    assert isinstance(first, Failed)
    assert isinstance(second, Generated)
    assert ["repetition_penalty" in body for body in server.asked] == [True, False, True]


def test_what_was_asked_for_is_never_left_out(server: Server) -> None:
    server.fields = OPENAI | {"repetition_penalty", "min_p"}
    assert "top_k" in failure(server, hello(sampling=Sampling(temperature=1.0, top_k=5)))


def test_a_server_that_is_gone_is_not_waited_for_again_and_again(server: Server) -> None:
    server.misbehave = lambda body, number: Reply(0, b"") if body["messages"][-1]["content"] == "hello" else None
    model = EndpointModel(server.name, concurrency=1)
    answers = ask(model, *[hello()] * 3, Generate(prompt=user("back?")), hello())
    assert [type(answer) for answer in answers] == [Failed, Failed, Failed, Generated, Failed]
    assert "the connection failed" in getattr(answers[0], "reason", "")
    tries = 1 + connection.RETRIES
    assert len(server.asked) == tries + 1 + 1 + 1 + tries


# ------------------------------------------------------------------------------------------------- several at a time


def test_so_many_requests_are_in_flight_and_no_more(server: Server) -> None:
    def speak(prompt: str) -> str:
        # However busy the machine is: the first answers wait for as many requests as may come.
        for _ in range(400):
            if server.busiest >= 5:
                break
            time.sleep(0.05)
        return slowly(0.05)(prompt)

    server.speak = speak
    model = EndpointModel(server.name, concurrency=5)
    answers = ask(model, *[Generate(prompt=f"number {number}") for number in range(20)])
    assert [getattr(answer, "text", "") for answer in answers] == [f"You said: number {n}" for n in range(20)]
    assert server.busiest == 5
    assert model.counters() == {"requests": 20, "prompt_tokens": 40, "new_tokens": 80, "concurrency": 5}


def test_progress_is_the_servers_count_of_tokens(server: Server) -> None:
    model = EndpointModel(server.name)
    seen: list[int] = []
    model.on_progress(seen.append)
    ask(model, hello(), hello())
    assert sum(seen) == 2 * (1 + 3)


def test_unload_drops_what_is_queued_and_what_is_under_way(server: Server) -> None:
    server.speak = slowly(0.2)
    model = EndpointModel(server.name, concurrency=2)
    for ticket in range(10):
        model.submit(ticket, Generate(prompt=f"old {ticket}"))
    time.sleep(0.1)
    model.unload()
    assert list(model.collect()) == []
    model.submit(99, Generate(prompt="new"))
    assert [(ticket, getattr(answer, "text", "")) for ticket, answer in model.collect()] == [(99, "You said: new")]
    time.sleep(0.3)
    assert sorted(server.prompts) == ["new", "old 0", "old 1"]


def test_no_thread_is_left_when_all_is_answered() -> None:
    before = threading.active_count()
    pool: Pool[int, int] = Pool(lambda number: number, 8)
    for ticket in range(20):
        pool.submit(ticket, ticket)
    while pool.collect():
        pass
    time.sleep(0.1)
    assert threading.active_count() <= before


def test_a_bug_in_a_thread_is_raised_where_answers_are_collected() -> None:
    pool: Pool[int, float] = Pool(lambda number: 1 / number, 2)
    pool.submit(0, 0)
    with pytest.raises(ZeroDivisionError):
        pool.collect()
    pool.submit(1, 2)
    assert list(pool.collect()) == [(1, 0.5)]
    assert list(pool.collect()) == []


# ------------------------------------------------------------------------------------------------ who is asked


def test_the_identity_is_the_address_and_says_that_weights_are_unknown(server: Server) -> None:
    one_, same = EndpointModel(server.name).identity, EndpointModel(f"endpoint:{server.url}/").identity
    assert one_ == same
    assert (one_.name, one_.engine, one_.dtype, one_.device) == ("toy", "endpoint", "unknown", "remote")
    assert (one_.chat, one_.exact, one_.chat_template) == (True, False, None)
    assert one_.versions["endpoint"] == f"{server.url} (weights unknown)"
    with serving(Server()) as other:
        assert EndpointModel(other.name).identity.fingerprint != one_.fingerprint


def test_the_only_model_needs_no_name_and_one_of_several_does(server: Server) -> None:
    assert EndpointModel(f"endpoint:{server.url}").identity.name == "toy"
    server.models = ["small", "large"]
    assert EndpointModel(f"endpoint:{server.url}#large").identity.name == "large"
    with pytest.raises(ModelError, match=r"expected one model, found small, large") as said:
        EndpointModel(f"endpoint:{server.url}")
    assert f"endpoint:{server.url}#small" in str(said.value)


def test_a_wrong_name_is_said_before_anything_is_asked(server: Server) -> None:
    with pytest.raises(ModelError, match=r"expected a model called toi, found toy .*Did you mean 'toy'\?"):
        EndpointModel(f"endpoint:{server.url}#toi")


def test_a_server_may_serve_what_it_does_not_list(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "listed", lambda: Reply(500, b"no cache"))
    assert EndpointModel(f"endpoint:{server.url}#toy").identity.name == "toy"
    with pytest.raises(ModelError, match="found no list of models"):
        EndpointModel(f"endpoint:{server.url}#other")


@pytest.mark.parametrize("listed", [Reply(404, b"Not Found"), Reply(200, b"<html>"), Reply(200, {"data": 3})])
def test_a_server_without_a_list_is_no_openai_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, listed: Reply
) -> None:
    monkeypatch.setattr(server, "listed", lambda: listed)
    with pytest.raises(ModelError, match="found no list of models"):
        EndpointModel(f"endpoint:{server.url}")


def test_no_server_is_said_at_once() -> None:
    with serving(Server()) as server:
        url = server.url
    with pytest.raises(ModelError, match="no server can be reached there"):
        EndpointModel(f"endpoint:{url}")


@pytest.mark.parametrize("place", ["QWEN_EVAL_API_KEY", "OPENAI_API_KEY"])
def test_the_key_comes_from_the_environment_and_is_never_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    server.key = "secret-1234"
    with pytest.raises(ModelError, match="QWEN_EVAL_API_KEY"):
        EndpointModel(server.name)
    monkeypatch.setenv(place, "wrong-5678")
    with pytest.raises(ModelError, match="HTTP 401") as said:
        EndpointModel(server.name)
    assert "wrong-5678" not in str(said.value)
    monkeypatch.setenv(place, "secret-1234")
    model = EndpointModel(server.name)
    server.key = "another"
    [answer] = ask(model, hello())
    assert isinstance(answer, Failed)
    assert answer.reason == "HTTP 401: Incorrect API key provided: …"
    assert "secret" not in repr(model.identity)


def test_our_own_key_goes_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("QWEN_EVAL_API_KEY", "ours")
    server.keys.clear()
    one(server, hello())
    assert server.keys == {"ours"}


@pytest.mark.parametrize("key", ["sécret", "two\nlines"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("QWEN_EVAL_API_KEY", key)
    with pytest.raises(UsageError, match="QWEN_EVAL_API_KEY: expected a key of plain letters") as said:
        EndpointModel(server.name)
    assert key not in str(said.value)
    monkeypatch.setenv("QWEN_EVAL_API_KEY", " ours\n")
    one(server, hello())
    assert "ours" in server.keys


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:99999/v1", "http:///v1#toy"])
def test_what_is_no_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(UsageError, match="such as endpoint:http://localhost:8000/v1#"):
        Address.parse(f"endpoint:{url}")


@pytest.mark.parametrize("url", ["http://me:secret@x/v1#toy", "https://x/v1?key=secret#toy", "http://secret@x/v1"])
def test_a_url_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="QWEN_EVAL_API_KEY") as said:
        Address.parse(f"endpoint:{url}")
    assert "secret" not in str(said.value)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Choose(prompt=user("x"), options=("a", "b")), "log-probabilities"),
        (Perplexity(text="x", block=8), "perplexity"),
        (Generate(prompt="x", cut=LeftCut(over=8, keep=8)), "--published-truncation"),
    ],
)
def test_what_an_endpoint_cannot_be_asked_is_refused_before(server: Server, request_: Request, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        EndpointModel(server.name).prompt_tokens(request_)
    assert failure(server, request_)
    assert server.asked == []
    assert EndpointModel(server.name).prompt_tokens(hello()) == ()
    with pytest.raises(UsageError, match="--rouge-tokenizer own"):
        EndpointModel(server.name).pieces("text")


# -------------------------------------------------------------------------------------------------------- options


def test_options_of_one_token_take_one_step(server: Server) -> None:
    options = (" A", " B", " C")
    [answer] = ask(EndpointModel(server.name), Choose(prompt="2+2? Answer:", options=options))
    context = tokens("2+2? Answer:")
    expected = tuple(logprob(context, tokens(option)[0]) for option in options)
    assert answer == Chosen(logprobs=expected, prompt_tokens=len(context))
    [body] = [body for body in server.asked if "max_tokens" in body]
    assert (body["prompt"], body["max_tokens"], body["logprobs"]) == (context, 1, 1)


def test_the_tokens_of_longer_options_are_added_up(server: Server) -> None:
    options = (" A", " B too")
    [answer] = ask(EndpointModel(server.name), Choose(prompt="Answer:", options=options))
    context = tokens("Answer:")
    a, (b, too) = tokens(" A")[0], tokens(" B too")
    assert isinstance(answer, Chosen)
    assert answer.logprobs == pytest.approx((logprob(context, a), logprob(context, b) + logprob([*context, b], too)))


def test_a_context_ends_before_the_tokens_that_an_option_changes(server: Server) -> None:
    [answer] = ask(EndpointModel(server.name), Choose(prompt="It has val", options=("ue", "our")))
    context = tokens("It has")
    expected = tuple(logprob(context, tokens(word)[0]) for word in (" value", " valour"))
    assert answer == Chosen(logprobs=expected, prompt_tokens=2)


def test_a_server_that_gives_no_logprobs_is_found_out_before_anything_is_asked(server: Server) -> None:
    request = Choose(prompt="Answer:", options=(" A", " B"))
    assert EndpointModel(server.name).prompt_tokens(request) == ()
    server.fields = OPENAI
    model = EndpointModel(server.name)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"the server does not give them \(HTTP 404: No such path: /tokenize\)"):
            model.prompt_tokens(request)
    assert [body for body in server.asked if body.get("prompt") == "Answer:"] == []


# ------------------------------------------------------------------------------------------------------- the judge


def test_the_judge_sees_the_images_in_order_and_then_the_text(server: Server) -> None:
    judge = JudgeEndpoint(server.name)
    judge.submit(7, Judge(prompt="A bar chart?", images=("QUJD", "REVG")))
    assert list(judge.collect()) == [(7, "You said: A bar chart?")]
    [body] = server.asked
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,REVG"}},
                {"type": "text", "text": "A bar chart?"},
            ],
        }
    ]
    assert (body["temperature"], body["max_tokens"]) == (0, 2048)
    assert (judge.name, judge.identity.engine) == ("toy", "endpoint")


def test_the_judge_is_waited_for_as_long_as_is_said(server: Server) -> None:
    judge = JudgeEndpoint(server.name)
    assert list(judge.collect(timeout=None)) == []
    server.speak = slowly(0.3)
    judge.submit(1, Judge(prompt="?", images=("QUJD",)))
    begun = time.monotonic()
    assert list(judge.collect(timeout=0)) == []
    assert list(judge.collect(timeout=0.05)) == []
    assert time.monotonic() - begun < 0.25
    assert list(judge.collect()) == [(1, "You said: ?")]


def test_without_an_image_there_is_nothing_to_judge(server: Server) -> None:
    judge = JudgeEndpoint(server.name)
    judge.submit(1, Judge(prompt="A bar chart?"))
    assert list(judge.collect()) == [(1, "")]
    assert server.asked == []


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Thinking: is it right? No, it is wr", "length", "cut off (finish_reason 'length')"),
        ("", "stop", "empty (finish_reason 'stop')"),
        (" ", "stop", "empty (finish_reason 'stop')"),
        ("right", "content_filter", "cut off (finish_reason 'content_filter')"),
    ],
)
def test_a_reply_that_says_nothing_whole_is_no_word_of_the_judge(
    server: Server, text: str, finish: str, reason: str
) -> None:
    server.finish = finish
    server.speak = lambda prompt: text
    judge = JudgeEndpoint(server.name)
    judge.submit(1, Judge(prompt="?", images=("QUJD",)))
    assert list(judge.collect()) == [(1, Failed(reason=f"judge toy: its reply is {reason}"))]


def test_a_judge_that_fails_says_nothing(server: Server) -> None:
    judge = JudgeEndpoint(server.name)
    server.misbehave = lambda body, number: error(400, "this model takes no images")
    judge.submit(1, Judge(prompt="?", images=("QUJD",)))
    [(ticket, reply)] = judge.collect()
    assert (ticket, reply) == (1, Failed(reason="judge toy: HTTP 400: this model takes no images"))
