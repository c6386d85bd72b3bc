"""A model whose answers a function gives: for unit tests of everything that is not a model."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from qwen_eval.models.base import Identity
from qwen_eval.prompts import as_text
from qwen_eval.task import Answer, Failed, Prompt, Request

__all__ = ["ScriptedModel"]


class ScriptedModel:
    """Answers each request with `script(request)`, at most `batch` at a time."""

    def __init__(self, script: Callable[[Request], Answer | Failed], *, batch: int = 4, chat: bool = False) -> None:
        """Take the function that answers."""
        self.script = script
        self.batch = batch
        self.asked = 0
        self._queue: deque[tuple[int, Request]] = deque()
        self.identity = Identity(
            name="scripted",
            fingerprint="0" * 16,
            dtype="none",
            device="none",
            engine="scripted",
            chat=chat,
            chat_template=None,
            exact=True,
        )

    def submit(self, ticket: int, request: Request) -> None:
        """Queue a request."""
        self._queue.append((ticket, request))

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Answer the next few requests."""
        ready = [self._queue.popleft() for _ in range(min(self.batch, len(self._queue)))]
        self.asked += len(ready)
        return [(ticket, self.script(request)) for ticket, request in ready]

    def withdraw(self) -> int:
        """Nothing here is worth waiting for: return 0."""
        return 0

    def forget(self) -> None:
        """Nothing is remembered."""

    def unload(self) -> None:
        """Drop what is queued; there are no weights."""
        self._queue.clear()

    def render(self, prompt: Prompt) -> str:
        """Return plain text as it is, conversations as ChatML."""
        return as_text(prompt)

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the UTF-8 bytes of the prompt as its tokens."""
        prompt = getattr(request, "prompt", "")
        return tuple(self.render(prompt).encode())

    def pieces(self, text: str) -> tuple[str, ...]:
        """Return the characters."""
        return tuple(text)

    def on_progress(self, report: Callable[[int], None]) -> None:
        """Take the callback; a scripted answer has no progress."""

    def counters(self) -> Mapping[str, int | float | str]:
        """Return how many requests were answered."""
        return {"requests": self.asked}
