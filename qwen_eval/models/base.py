"""What every model meets: an identity, a queue of requests, answers as they come.

The local engine, an HTTP endpoint or several replicas can all be put behind these few calls: the runner submits every
request it has, and collects answers in whatever order and portion the model finishes them. A sample's next turn is
submitted while others are still running, so it joins them.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qwen_eval.task import Answer, Chosen, Failed, Judge, Request

__all__ = ["NOT_A_NUMBER", "NO_COUNTS", "Identity", "Judging", "Model", "chosen"]

NO_COUNTS = ("batch_size", "peak_memory_bytes", "peak_memory_answering_bytes")
"""What `Model.counters` returns as it is in force, or was at most; everything else adds up."""

NOT_A_NUMBER = Failed(reason="the model's output is not a number")
"""The answer where a model computes NaN or infinity: its weights are broken, or the dtype is too small for them."""


def chosen(logprobs: Sequence[float], *, prompt_tokens: int, cut_tokens: int = 0) -> Chosen | Failed:
    """Return log-probabilities as an answer; NOT_A_NUMBER where one is NaN, or none is finite.

    Some models never say some tokens: minus infinity becomes the lowest float, as JSON has nothing below it.
    """
    if any(map(math.isnan, logprobs)) or not any(map(math.isfinite, logprobs)):
        return NOT_A_NUMBER
    lowest = -sys.float_info.max
    return Chosen(
        logprobs=tuple(max(each, lowest) for each in logprobs), prompt_tokens=prompt_tokens, cut_tokens=cut_tokens
    )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What decides a model's answers. Two models with the same identity give the same answers.

    `name` is for people and folder names; `fingerprint` is a hash of weights, configuration and tokenizer. `chat` says
    whether the model's end tokens close a turn of its chat template; `exact` whether answers are independent of the
    batch size (float32). `rope` names how contexts beyond the training length are met, None where a model has nothing
    of the kind; `remote_code` says that code of the checkpoint's own answers.
    """

    name: str
    fingerprint: str
    dtype: str
    device: str
    engine: str
    chat: bool
    chat_template: str | None
    exact: bool
    rope: str | None = None
    remote_code: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)


class Model(Protocol):
    """Something that answers requests. It knows no task."""

    @property
    def identity(self) -> Identity:
        """Who answers. Known before any weights are loaded."""

    def submit(self, ticket: int, request: Request) -> None:
        """Queue a request. The answer comes back under the same ticket."""

    def collect(self) -> Sequence[tuple[int, Answer | Failed]]:
        """Wait until some answers are ready and return them; an empty sequence when nothing is queued."""

    def withdraw(self) -> int:
        """Take back what nobody is at yet, and return how many answers cannot be taken back and are still collected.

        Those are a server's, where each is paid for. Local work is not waited for: it may take as long as the longest.
        """

    def forget(self) -> None:
        """Let go of what earlier requests left behind (cached prefixes): the next answers do not depend on it."""

    def unload(self) -> None:
        """Let go of the weights and of everything queued or computed; the next request loads them again."""

    def prompt_tokens(self, request: Request) -> tuple[int, ...]:
        """Return the token ids of a request's prompt."""

    def pieces(self, text: str) -> tuple[str, ...]:
        """Return the tokens of a text, each decoded on its own; what is no whole character becomes U+FFFD."""

    def on_progress(self, report: Callable[[int], None]) -> None:
        """Call `report(tokens)` while working, with the number of tokens computed since the last call."""

    def counters(self) -> Mapping[str, int | float | str]:
        """Return what was computed so far (tokens, batches), and NO_COUNTS; a run's share goes into timing.json."""


class Judging(Protocol):
    """A second model, which looks at what the first one made."""

    @property
    def identity(self) -> Identity:
        """Who judges."""

    def submit(self, ticket: int, request: Judge) -> None:
        """Queue a question. What is replied comes back under the same ticket."""

    def collect(self, *, timeout: float | None = None) -> Sequence[tuple[int, str | Failed]]:
        """Wait until some are answered, for `timeout` seconds at most (0 only looks), and return the replies."""

    def withdraw(self) -> int:
        """Take back what nobody is at yet, and return how many replies are under way and still collected."""
