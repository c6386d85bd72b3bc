"""A model behind an OpenAI-compatible HTTP endpoint, and a judge that sees images.

Conversations go to `/chat/completions`, plain text to `/completions`. The server renders a conversation with its own
template, and turns text into tokens; neither is seen from here, nor are the weights. What it cannot be asked is refused
before anything is: perplexity, prompts cut by tokens, log-probabilities where it does not tell those of given tokens.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Final

from qwen_eval.errors import UsageError
from qwen_eval.models.base import Identity
from qwen_eval.models.connection import Address, Connection, NoAnswer, Pool
from qwen_eval.models.logprobs import choose
from qwen_eval.task import Answer, Chat, Choose, Chosen, Failed, Generate, Generated, Judge, Perplexity, Request

__all__ = ["EndpointModel", "JudgeEndpoint"]

CONCURRENCY = 16
"""Requests in flight where the user says nothing: a server batches them, and one that allows fewer says 429."""
STOPS = 4
"""Stop strings that the API takes. Where a protocol has more, an answer is cut when it has come."""
SEEDS = 2**31
"""Some servers keep a seed in 32 bits."""
ENDED: Final = ("stop", "tool_calls", "function_call")
JUDGED_TOKENS = 2048
"""Some judges think aloud before the word that counts."""


class EndpointModel:
    """A served model. It is asked for its name at once, and for answers by up to `concurrency` requests at a time."""

    def __init__(self, model: str, *, concurrency: int | None = None, say: Callable[[str], None] = print) -> None:
        """Find the server of `endpoint:URL#NAME`. Raises UsageError, ModelError."""
        self._connection = Connection(Address.parse(model), say=say)
        self.identity = _identity(self._connection)
        self._pool: Pool[Request, Answer | Failed] = Pool(
            partial(_answer, self._connection), concurrency or CONCURRENCY
        )
        self._report: Callable[[int], None] = lambda tokens: None
        self._counters = dict.fromkeys(("requests", "prompt_tokens", "new_tokens"), 0)

    def submit(self, ticket: int, request: Request) -> None:
        """Queue a request."""
        self._pool.submit(ticket, request)

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Wait for the next answers."""
        answers = self._pool.collect()
        self._counters["requests"] += len(answers)
        for _, answer in answers:
            if isinstance(answer, Generated | Chosen):
                new_tokens = answer.new_tokens if isinstance(answer, Generated) else 0
                self._counters["prompt_tokens"] += answer.prompt_tokens
                self._counters["new_tokens"] += new_tokens
                self._report(answer.prompt_tokens + new_tokens)
        return answers

    def withdraw(self) -> int:
        """Take back what is queued, and return how many requests are under way at the server."""
        return self._pool.withdraw()

    def forget(self) -> None:
        """What a server remembers is its own."""

    def unload(self) -> None:
        """Drop what is queued and under way."""
        self._pool.drop()
        self._report = lambda tokens: None

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return nothing: the tokens are the server's. Raises UsageError for what it cannot be asked."""
        reason = _unanswerable(request) or (self._choosing if isinstance(request, Choose) else "")
        if reason:
            raise UsageError(reason)
        return ()

    def pieces(self, text: str) -> tuple[str, ...]:
        """Raise UsageError: the tokens are the server's."""
        raise UsageError(
            "--rouge-tokenizer own: the tokens of an endpoint are not known.\n"
            "Next: leave out --rouge-tokenizer, or choose a local model."
        )

    def on_progress(self, report: Callable[[int], None]) -> None:
        """Call `report` with the tokens that the server counts for every answer."""
        self._report = report

    def counters(self) -> Mapping[str, int | float | str]:
        """Return requests, the tokens that the server counted, and how many requests were in flight."""
        return {**self._counters, "concurrency": self._pool.threads}

    @cached_property
    def _choosing(self) -> str:
        """Why the server cannot be asked for the log-probabilities of options, "" where it can: it is tried once."""
        try:
            for options in (("2", "3"), ("2 and", "3 and")):
                choose(self._connection, Choose(prompt="1, ", options=options))
        except NoAnswer as error:
            return (
                f"this protocol compares log-probabilities, and the server does not give them ({error}).\n"
                "Next: choose a protocol that generates (one with chat in its name, or --chat), a server such as "
                "vLLM's, or a local model."
            )
        return ""


class JudgeEndpoint:
    """The judge: a second model, which sees images. `submit` any number, `collect` until it returns nothing."""

    def __init__(self, model: str, *, concurrency: int | None = None, say: Callable[[str], None] = print) -> None:
        """Find the server of `endpoint:URL#NAME`. Raises UsageError, ModelError."""
        self._connection = Connection(Address.parse(model), say=say)
        self.identity = _identity(self._connection)
        self.name = self.identity.name
        self._pool: Pool[Judge, str | Failed] = Pool(partial(_judged, self._connection), concurrency or CONCURRENCY)

    def submit(self, ticket: int, request: Judge) -> None:
        """Put a question in line; `ticket` comes back with the reply."""
        self._pool.submit(ticket, request)

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, str | Failed]]:
        """Wait until replies are there, for `timeout` seconds at most (0 only looks), and return them.

        Empty when nothing is in line, or nothing is ready in time.
        """
        return self._pool.collect(timeout=timeout)

    def withdraw(self) -> int:
        """Take back what is queued, and return how many questions are under way at the server."""
        return self._pool.withdraw()

    def unload(self) -> None:
        """Drop what is queued and under way."""
        self._pool.drop()


def _answer(connection: Connection, request: Request) -> Answer | Failed:
    reason = _unanswerable(request)
    if reason or isinstance(request, Perplexity):
        return Failed(reason=reason.partition("\n")[0])
    try:
        if isinstance(request, Choose):
            return choose(connection, request)
        path, body, spare = _written(request)
        return _read(request, connection.post(path, body, spare=spare))
    except NoAnswer as error:
        return Failed(reason=str(error))


def _judged(connection: Connection, request: Judge) -> str | Failed:
    """Ask greedily: the images in their order, then the text. Where there is no image there is nothing to ask.

    A reply that is empty or was cut off is none: what it would have said is never guessed.
    """
    if not request.images:
        return ""
    images = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in request.images]
    content = [*images, {"type": "text", "text": request.prompt}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": JUDGED_TOKENS, "temperature": 0}
    try:
        choice = _choice(connection.post("/chat/completions", body, spare={"repetition_penalty": 1.0}))
        text, finish = _said(choice), choice.get("finish_reason")
        if finish not in ENDED or not text.strip():
            raise NoAnswer(f"its reply is {'cut off' if text.strip() else 'empty'} (finish_reason {finish!r})")
        return text
    except NoAnswer as error:
        return Failed(reason=f"judge {connection.name}: {error}")


def _identity(connection: Connection) -> Identity:
    """Return who answers. The weights are unknown, so the address stands for them."""
    known = json.dumps([connection.url, connection.name, connection.root])
    return Identity(
        name=connection.name,
        fingerprint=hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        dtype="unknown",
        device="remote",
        engine="endpoint",
        chat=True,
        chat_template=None,
        exact=False,
        versions={"endpoint": f"{connection.url} (weights unknown)"},
    )


def _unanswerable(request: Request) -> str:
    """Return why an endpoint cannot be asked this, "" where it can."""
    if isinstance(request, Choose) and isinstance(request.prompt, Chat):
        return (
            "this protocol compares log-probabilities behind a conversation, whose tokens are the server's.\n"
            "Next: choose a protocol that generates, or a local model."
        )
    if isinstance(request, Perplexity):
        return (
            "perplexity needs the probability of every token of a text, which an endpoint is not asked for.\n"
            "Next: choose a local model."
        )
    if request.cut:
        return (
            "the published cut of long prompts counts tokens, and those of an endpoint are not known.\n"
            "Next: leave out --published-truncation, or choose a local model."
        )
    return ""


def _written(request: Generate) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the path, the body, and the fields that the server need not know."""
    body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": 0}
    spare: dict[str, Any] = {}
    if request.stops:
        body["stop"] = list(request.stops[:STOPS])
    # Servers take what a request leaves out from the checkpoint's generation configuration.
    if not request.own_penalty:
        spare["repetition_penalty"] = 1.0
    if drawn := request.sampling:
        body |= {"temperature": drawn.temperature, "top_p": drawn.top_p, "seed": drawn.seed % SEEDS}
        (body if drawn.top_k else spare)["top_k"] = drawn.top_k or -1
        spare["min_p"] = 0.0
    if isinstance(request.prompt, str):
        return "/completions", body | {"prompt": request.prompt}, spare
    return "/chat/completions", body | _conversation(request.prompt), spare


def _conversation(prompt: Chat) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    fields: dict[str, Any] = {"messages": messages}
    if prompt.tools:
        fields["tools"] = json.loads(prompt.tools)
    if prompt.begun:
        messages.append({"role": "assistant", "content": prompt.begun})
        # An extension of vLLM and SGLang. A server that refuses it gives no answer: it would begin a turn of its own.
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return fields


def _read(request: Generate, answer: Mapping[str, Any]) -> Generated:
    """Return the answer as the local engine would give it: the text before the first stop string. Raises NoAnswer."""
    choice = _choice(answer)
    text, finish = _said(choice), choice.get("finish_reason")
    if finish not in (*ENDED, "length"):
        raise NoAnswer(f"the server broke the answer off (finish_reason {finish!r})")
    stop = min((at for at in map(text.find, request.stops) if at >= 0), default=-1)
    # The API says "stop" for an end token too; vLLM and SGLang say which string it was.
    stopped = stop >= 0 or choice.get("stop_reason", choice.get("matched_stop")) in request.stops
    usage = answer.get("usage") or {}
    try:
        prompt_tokens, new_tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (TypeError, ValueError, AttributeError):
        prompt_tokens = new_tokens = 0
    return Generated(
        text=text[:stop] if stop >= 0 else text,
        finish="stop" if stopped else "length" if finish == "length" else "end",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise NoAnswer("the server's answer has no choice in it")
    return choices[0]


def _said(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice, and behind it the calls that the server has read out of the model's output.

    They are written as Qwen's chat template writes them, so that one parser reads both.
    """
    try:
        if "message" not in choice:
            return "".join([choice["text"]])
        message = choice["message"]
        content = [message["content"]] if message.get("content") else []
        return "\n".join([*content, *(_call(call["function"]) for call in message.get("tool_calls") or ())])
    except (KeyError, TypeError, AttributeError):
        raise NoAnswer("the server's answer has no text in it") from None


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    with suppress(ValueError, TypeError, RecursionError):  # what is no JSON stays as the model wrote it
        arguments = json.loads(arguments)
    call = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"
