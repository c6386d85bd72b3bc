"""Log-probabilities of options from a server that tells those of the tokens it is asked for, as vLLM does.

The options are tokenized behind their prompt by the server itself (`/tokenize`). Where each is one token, the server
computes one step and gives the log-probabilities of just these tokens (`logprob_token_ids`), so its cache of prefixes
serves prompts that begin alike; asking for those of a whole prompt (`echo`) goes past that cache, and is left to
options of several tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_eval.models.base import chosen
from qwen_eval.models.connection import Connection, NoAnswer
from qwen_eval.models.transformers.tokenization import common_length
from qwen_eval.task import Choose, Chosen, Failed

__all__ = ["choose"]


def choose(connection: Connection, request: Choose) -> Chosen | Failed:
    """Return the log-probability of each option behind a prompt of plain text. Raises NoAnswer."""
    assert isinstance(request.prompt, str)
    context = _tokens(connection, request.prompt)
    wholes = [_tokens(connection, request.prompt + option) for option in request.options]
    # Where an option changes the prompt's own tokens, the context ends before them, so that options stay comparable.
    shared = min(common_length(context, whole) for whole in wholes)
    options = [whole[shared:] for whole in wholes]
    if all(len(option) == 1 for option in options):
        logprobs = _of_tokens(connection, context[:shared], [option[0] for option in options])
    else:
        logprobs = [_of_text(connection, whole, len(option)) for whole, option in zip(wholes, options, strict=True)]
    return chosen(logprobs, prompt_tokens=shared)


def _tokens(connection: Connection, text: str) -> list[int]:
    answer = connection.post(f"{connection.url.removesuffix('/v1')}/tokenize", {"prompt": text}, spare={})
    tokens = answer.get("tokens")
    if not (isinstance(tokens, list) and all(isinstance(token, int) for token in tokens)):
        raise NoAnswer("the server does not say which tokens a text has")
    return tokens


def _of_tokens(connection: Connection, context: Sequence[int], tokens: Sequence[int]) -> list[float]:
    asked = {"logprobs": 1, "logprob_token_ids": sorted(set(tokens)), "return_tokens_as_token_ids": True}
    found = _logprobs(connection, {"prompt": list(context), "max_tokens": 1, **asked})
    try:
        return [float(found["top_logprobs"][0][f"token_id:{token}"]) for token in tokens]
    except (KeyError, IndexError, TypeError, ValueError):
        raise NoAnswer("the server does not say how likely the options are") from None


def _of_text(connection: Connection, whole: Sequence[int], length: int) -> float:
    """Return the log-probability of the last `length` tokens. A server may insist on a further one."""
    found = _logprobs(connection, {"prompt": list(whole), "max_tokens": 1, "echo": True, "logprobs": 1})
    try:
        return float(sum(found["token_logprobs"][len(whole) - length : len(whole)]))
    except (KeyError, TypeError):
        raise NoAnswer("the server does not say how likely a text is") from None


def _logprobs(connection: Connection, body: Mapping[str, Any]) -> Mapping[str, Any]:
    answer = connection.post("/completions", {**body, "temperature": 0}, spare={"repetition_penalty": 1.0})
    try:
        found = answer["choices"][0]["logprobs"]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswer("the server gives no log-probabilities")
    return found
