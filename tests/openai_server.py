"""An OpenAI-compatible server on loopback, small and honest: it checks what it is sent, and misbehaves as it is told.

It answers as the protocol says, 400 for fields it does not know, more than four stop strings, prompts beyond its window;
401 for a wrong key, 404 for another model. `misbehave` may deal with a request in its place.
"""

import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPENAI = {
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "tools",
    "logprobs",
    "echo",
}
VLLM = OPENAI | {
    *{"repetition_penalty", "top_k", "min_p", "continue_final_message", "add_generation_prompt"},
    *{"logprob_token_ids", "return_tokens_as_token_ids"},
}
ROLES = {"system", "user", "assistant"}


@dataclass
class Reply:
    """A status, a body (JSON, or bytes as they are), headers. `cut` sends only half of the body and hangs up."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def error(status: int, message: str, **more: Any) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "invalid_request_error", **more}})


class Server:
    """What it serves, what it was asked, and how it answers: `speak` returns the text for a prompt."""

    def __init__(self) -> None:
        self.models = ["toy"]
        self.fields = VLLM
        self.most_stops: int | None = 4
        self.window = 4096
        self.key = ""
        self.speak: Callable[[str], str] = lambda prompt: f"You said: {prompt}"
        self.tool_calls: list[tuple[str, str]] = []
        self.finish = ""
        self.misbehave: Callable[[Mapping[str, Any], int], Reply | None] = lambda body, number: None
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def name(self) -> str:
        return f"endpoint:{self.url}#{self.models[0]}"

    @property
    def prompts(self) -> list[Any]:
        """What it was asked to go on with: the last message, or the text."""
        return [body["messages"][-1]["content"] if "messages" in body else body["prompt"] for body in self.asked]

    def listed(self) -> Reply:
        return Reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    def answer(self, path: str, content: bytes) -> Reply:
        body = json.loads(content)
        with self.lock:
            self.asked.append(body)
            number = len(self.asked)
        if path == "/tokenize" and self.fields >= VLLM:
            return Reply(200, {"tokens": tokens(body["prompt"])})
        return self.misbehave(body, number) or self.refuse(path, body) or self.complete(path, body)

    def refuse(self, path: str, body: Mapping[str, Any]) -> Reply | None:
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return error(404, f"No such path: {path}")
        if body.get("model") not in self.models:
            return error(404, f"The model `{body.get('model')}` does not exist.", code="model_not_found")
        for name in sorted(body.keys() - self.fields):
            return error(400, f"Unrecognized request argument supplied: {name}", param=None)
        stops = body.get("stop") or []
        if self.most_stops is not None and len(stops) > self.most_stops:
            return error(400, f"Invalid 'stop': array too long, at most {self.most_stops}.", param="stop")
        wanted = "messages" if path == "/v1/chat/completions" else "prompt"
        if not body.get(wanted) or ("messages" in body and "prompt" in body):
            return error(400, f"'{wanted}' is a required property")
        if any(message.get("role") not in ROLES for message in body.get("messages", ())):
            return error(400, "an unknown role")
        goes_on = body.get("continue_final_message", False)
        if goes_on and (body["add_generation_prompt"] or body["messages"][-1]["role"] != "assistant"):
            return error(400, "cannot continue")
        if (length := len(said(body).split())) + body["max_tokens"] > self.window:
            return error(
                400, f"This model's maximum context length is {self.window} tokens. However, you requested {length}."
            )
        return None

    def complete(self, path: str, body: Mapping[str, Any]) -> Reply:
        text = self.speak(said(body))
        finish, reason = "stop", None
        if stops := [stop for stop in body.get("stop", ()) if stop in text]:
            reason = min(stops, key=text.index)
            text = text[: text.index(reason)]
        words = text.split(" ")
        if len(words) > body["max_tokens"]:
            text, finish, reason = " ".join(words[: body["max_tokens"]]), "length", None
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish or finish, "stop_reason": reason}
        if path == "/v1/completions":
            choice["text"] = text
            if "logprobs" in body:
                choice["logprobs"] = logprobs(body)
        else:
            choice["message"] = {"role": "assistant", "content": text}
            if "tools" in body and self.tool_calls:
                functions = [{"name": name, "arguments": arguments} for name, arguments in self.tool_calls]
                calls = [{"id": "1", "type": "function", "function": function} for function in functions]
                choice["message"] |= {"content": text or None, "tool_calls": calls}
                choice["finish_reason"] = "tool_calls"
        usage = {"prompt_tokens": len(said(body).split()), "completion_tokens": len(text.split())}
        return Reply(200, {"object": "chat.completion", "choices": [choice], "usage": usage})


def tokens(text: str) -> list[int]:
    """A token a word, with the space before it, or sign."""
    return [int.from_bytes(word.encode()[:6]) for word in re.findall(r" ?\w+|\W", text)]


def logprob(before: Sequence[int], token: int) -> float:
    """How likely a token is behind others: made up, but always the same."""
    return -(zlib.crc32(repr((list(before), token)).encode()) % 1000) / 100


def logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"]
    asked = {f"token_id:{token}": logprob(prompt, token) for token in body.get("logprob_token_ids", ())}
    behind = (
        [logprob(prompt[:at], token) if at else None for at, token in enumerate(prompt)] if body.get("echo") else []
    )
    return {"top_logprobs": [asked], "token_logprobs": [*behind, -0.5]}


def said(body: Mapping[str, Any]) -> str:
    """The text of the last message, or the prompt."""
    if "messages" not in body:
        return str(body["prompt"])
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1 until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(self.allowed() or (server.listed() if self.path == "/v1/models" else error(404, "Not Found")))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with server.lock:
                server.busy += 1
                server.busiest = max(server.busiest, server.busy)
            try:
                reply = self.allowed() or server.answer(self.path, content)
            finally:
                with server.lock:
                    server.busy -= 1
            self.send(reply)

        def allowed(self) -> Reply | None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            server.keys.add(given)
            # As some servers do, it repeats the key it was given.
            return error(401, f"Incorrect API key provided: {given}") if server.key and given != server.key else None

        def send(self, reply: Reply) -> None:
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            if reply.status == 0:
                # Hang up without a word, with a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if reply.cut else content)
            except OSError:
                self.close_connection = True  # whoever asked is gone
            self.close_connection = self.close_connection or reply.cut

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Whoever asked is gone, or was hung up on."""

    listener = Listener(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def slowly(seconds: float) -> Callable[[str], str]:
    """Speak after so many seconds."""

    def speak(prompt: str) -> str:
        time.sleep(seconds)
        return f"You said: {prompt}"

    return speak
