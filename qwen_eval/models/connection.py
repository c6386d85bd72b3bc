"""The way to an OpenAI-compatible server: where it is, what goes there and comes back, and several requests at a time.

The `openai` client does what is easy to get wrong: it keeps connections, repeats what failed for a passing reason (429,
5xx, a timeout, a dropped connection) with growing pauses, and waits as long as `Retry-After` says. Request bodies are
our own JSON, since servers take more fields than the client has names for, and texts may hold what UTF-8 cannot.
"""

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from qwen_eval.errors import ModelError, UsageError, did_you_mean

if TYPE_CHECKING:
    from openai import APIStatusError

__all__ = ["PREFIX", "Address", "Connection", "NoAnswer", "Pool"]

PREFIX = "endpoint:"
RETRIES = 5
"""Half a second, one, two, four, eight: a server that restarts its workers is waited for, one that is gone is not."""
SECONDS = 600.0
"""How long an answer may take: a long one, behind others in the server's queue."""
LONGEST = 300
"""Letters that are kept of what a server says of an error: some repeat the whole request."""
KEYS = ("QWEN_EVAL_API_KEY", "OPENAI_API_KEY")

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class NoAnswer(Exception):
    """A request that got no answer, and why, in one plain line."""


@dataclass(frozen=True)
class Address:
    """A server's base URL, and the name under which it serves a model; "" for the only one."""

    url: str
    name: str

    @classmethod
    def parse(cls, model: str) -> Self:
        """Read `endpoint:URL#NAME`. Raises UsageError; a URL with a password in it is refused, and not repeated."""
        url, _, name = model.removeprefix(PREFIX).partition("#")
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            fits = False
        if fits and (parts.query or parts.username or parts.password):
            raise UsageError(
                f"--model {PREFIX}…: expected a URL without a password or query, found one with it.\n"
                f"Next: put the key into the environment variable {KEYS[0]}."
            )
        if not fits:
            raise UsageError(
                f"--model {model}: expected {PREFIX}URL#NAME, such as {PREFIX}http://localhost:8000/v1#Qwen2.5-7B-Instruct."
            )
        return cls(url.rstrip("/"), name.strip())


class Connection:
    """A server that was found, and serves the model that was named."""

    def __init__(self, address: Address, *, say: Callable[[str], None] = print) -> None:
        """Ask the server which models it serves. Raises ModelError: unreachable, a wrong key, another model."""
        import openai

        self.url = address.url
        self._key = _key()
        self._client = openai.OpenAI(
            base_url=address.url,
            api_key=self._key or "none",  # the client insists on one; servers without keys take any
            timeout=openai.Timeout(SECONDS, connect=10.0),
            max_retries=RETRIES,
        )
        self._say = say
        self._refused: set[str] = set()
        self._gone = threading.Event()
        self.name, self.root = self._find(address.name)

    def post(self, path: str, body: Mapping[str, Any], *, spare: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the server answers to a request. Raises NoAnswer.

        `spare` are fields that a server need not know: one that refuses them by name is asked again without, and from
        then on at once.
        """
        spare = {name: value for name, value in spare.items() if name not in self._refused}
        sent = dict(spare)
        while True:
            try:
                answer = self._send(path, {"model": self.name, **body, **sent})
                break
            except _Refused as error:
                named = [name for name in sent if re.search(rf"\b{name}\b", error.text)]
                if not named:
                    raise
                for name in named:
                    del sent[name]
        # Only now: a server may repeat a whole request in an error that is about something else.
        if without := spare.keys() - sent.keys() - self._refused:
            self._refused |= without
            self._say(f"{self.name}: the server does not take {', '.join(sorted(without))}; asked without.")
        return answer

    def _send(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        import openai

        # A server that could not be reached at last is tried once for each further request, until it is back.
        retries = 0 if self._gone.is_set() else RETRIES
        try:
            content = self._client.post(
                path, content=json.dumps(body).encode(), cast_to=bytes, options={"max_retries": retries}
            )
        except openai.APIStatusError as error:
            if error.status_code in (400, 422):
                raise _Refused(self._words(error), error.response.text) from None
            raise NoAnswer(self._words(error)) from None
        except openai.APITimeoutError:
            raise NoAnswer(f"{self.url}: no answer within {SECONDS:.0f} seconds") from None
        except openai.APIConnectionError as error:
            self._gone.set()
            raise NoAnswer(f"{self.url}: the connection failed ({self._cause(error)})") from None
        self._gone.clear()
        return _object(content)

    def _find(self, name: str) -> tuple[str, str]:
        """Return the name of the model, and what the server says it is made of. Raises ModelError."""
        served = self._served()
        if not name:
            if served is not None and len(served) == 1:
                return next(iter(served.items()))
            raise ModelError(
                f"{self.url}: expected one model, found {_listed(served)}.\n"
                f"Next: name one: --model {PREFIX}{self.url}#{next(iter(served or ['NAME']))}."
            )
        if served is None or name not in served:
            # Some servers load what they do not list: a question decides.
            asked = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            try:
                self._send("/chat/completions", asked)
            except NoAnswer as error:
                raise ModelError(
                    f"{self.url}: expected a model called {name}, found {_listed(served)} ({error})."
                    f"{did_you_mean(name, served or ())}\n"
                    f"Next: correct the name, or the URL: it ends in /v1 as a rule."
                ) from None
        return name, (served or {}).get(name, "")

    def _served(self) -> dict[str, str] | None:
        """Return the models that the server lists, by name, with what it says they are made of; None: no list.

        Raises ModelError where no server can be reached, or the key is wrong.
        """
        import openai

        try:
            listed = _object(self._client.get("/models", cast_to=bytes, options={"max_retries": 1, "timeout": 30.0}))
            return {str(model["id"]): str(model.get("root") or "") for model in listed["data"]}
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ModelError(
                f"{self.url}: the server refuses the key ({self._words(error)}).\n"
                f"Next: set the environment variable {KEYS[0]}."
            ) from None
        except openai.APIConnectionError as error:
            raise ModelError(
                f"{self.url}: no server can be reached there ({self._cause(error)}).\n"
                "Next: start it, or correct the URL."
            ) from None
        except (openai.APIStatusError, NoAnswer, KeyError, TypeError, AttributeError):
            return None

    def _words(self, error: "APIStatusError") -> str:
        """Return what the server says of an error, in one line, without the key where it repeats it."""
        try:
            said = json.loads(error.response.text)
            said = said.get("error", said)
            said = said if isinstance(said, str) else said.get("message") or said.get("detail")
        except (ValueError, RecursionError, AttributeError):
            said = error.response.text
        return f"HTTP {error.status_code}: {self._plain(str(said or 'no reason given'))}"

    def _cause(self, error: Exception) -> str:
        return self._plain(str(error.__cause__ or error))

    def _plain(self, said: str) -> str:
        said = " ".join((said.replace(self._key, "…") if self._key else said).split())
        return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


class _Refused(NoAnswer):
    """A request that the server would not take as it was: `text` is all that the server said of it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"prompt and answer do not fit the server's window: {reason}" if _too_long(reason) else reason)
        self.text = text


class Pool(Generic[Asked, Answered]):
    """Answers what is submitted on so many threads; `collect` returns what is ready, in any order."""

    def __init__(self, answer: Callable[[Asked], Answered], threads: int) -> None:
        """Take the function that answers. Threads begin with the first requests."""
        self._answer = answer
        self.threads = threads
        self._begin()

    def submit(self, ticket: int, asked: Asked) -> None:
        """Put a request in line."""
        self._open += 1
        self._waiting.put((ticket, asked))
        if self._running < self.threads:
            self._running += 1
            # They do not keep the process alive: whoever stops it does not wait for answers nobody reads.
            threading.Thread(target=_work, args=(self._answer, self._waiting, self._ready), daemon=True).start()

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, Answered]]:
        """Wait until answers are there, for `timeout` seconds at most (0 only looks), and return them.

        Empty when nothing is in line, or nothing is ready in time. Raises what a thread could not deal with: our bugs.
        """
        if not self._open:
            return []
        found: list[tuple[int, Answered | Exception]] = []
        with suppress(queue.Empty):
            found.append(self._ready.get(block=timeout != 0, timeout=timeout or None))
        with suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        self._open -= len(found)
        if not self._open:
            self.drop()  # threads that have nothing to do end
        for _, answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found  # type: ignore[return-value]

    def withdraw(self) -> int:
        """Take back what no thread has begun, and return how many answers are still to be collected."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
                self._open -= 1
        return self._open

    def drop(self) -> None:
        """Let go of everything in line; what is under way is not waited for, and its answer is lost."""
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        for _ in range(self._running):
            self._waiting.put(None)
        self._begin()

    def _begin(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[int, Asked] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[int, Answered | Exception]] = queue.SimpleQueue()
        self._open = 0
        self._running = 0


def _work(
    answer: Callable[[Asked], Answered],
    waiting: "queue.SimpleQueue[tuple[int, Asked] | None]",
    ready: "queue.SimpleQueue[tuple[int, Answered | Exception]]",
) -> None:
    while (item := waiting.get()) is not None:
        ticket, asked = item
        try:
            ready.put((ticket, answer(asked)))
        except Exception as error:  # a thread that ends would leave its caller waiting for ever
            ready.put((ticket, error))


def _key() -> str:
    """Return the key of the environment, "" for none. Raises UsageError for what no header can hold."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UsageError(f"{name}: expected a key of plain letters and signs, found others in it.")
            return key
    return ""


def _listed(served: Mapping[str, str] | None) -> str:
    if not served:
        return "none" if served is not None else "no list of models"
    return ", ".join(list(served)[:8]) + (f" and {len(served) - 8} more" if len(served) > 8 else "")


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswer("the server's answer is no JSON object")
    return answer


def _too_long(said: str) -> bool:
    """Return whether a server refuses a request for its length; there is no common word for it."""
    return bool(
        re.search(
            r"context.?(length|window|size)|maximum (model|sequence|input|total).{0,10}(length|tokens)|too many tokens"
            r"|(prompt|input)\b[^.]{0,60}\b(too long|longer than)",
            said,
            re.IGNORECASE,
        )
    )
