"""Runs against an endpoint, as a user meets them: refused before they begin, resumed, killed, never asked twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai_server import OPENAI, Reply, Server, error, serving, slowly

from qwen_eval.results import read_answers

ROOT = Path(__file__).resolve().parent.parent
Cli = Callable[..., tuple[int, str, str]]
KEY = "secret-of-the-test"


@pytest.fixture(autouse=True)
def the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("QWEN_EVAL_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        server.key = KEY
        server.speak = lambda prompt: f"{len(prompt)} is it. The answer is {len(prompt) % 7}."
        yield server


def run(server: Server, *words: str) -> list[str]:
    return ["run", "--model", server.name, "--task", "gsm8k@qwen-chat", *words]


def folder_of(tmp_path: Path) -> Path:
    [answers] = tmp_path.rglob("answers.jsonl")
    return answers.parent


def test_a_run_is_scored_and_says_who_answered(cli: Cli, server: Server, tmp_path: Path) -> None:
    code, out, err = cli("run", "--model", server.name, "--task", "gsm8k", "--limit", "5", "--batch-size", "2")
    assert code == 0, err
    assert "gsm8k@qwen-chat (mini)" in out
    assert "is a chat model" in err
    assert server.busiest <= 2
    manifest = json.loads((folder_of(tmp_path) / "manifest.json").read_text())
    assert manifest["model"] == {
        **{"name": "toy", "dtype": "unknown", "device": "remote", "engine": "endpoint", "chat_template": None},
        "fingerprint": manifest["model"]["fingerprint"],
    }
    assert manifest["batch_invariant"] is False
    assert manifest["versions"]["endpoint"] == f"{server.url} (weights unknown)"


def test_nothing_that_is_written_or_said_holds_the_key(cli: Cli, server: Server, tmp_path: Path) -> None:
    # A server that repeats the key in everything that it says.
    server.misbehave = lambda body, number: error(400, f"bad request with key {KEY}") if number == 2 else None
    code, out, err = cli(*run(server, "--limit", "4"))
    assert code == 4, err
    assert "bad request with key …" in err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"manifest.json", "answers.jsonl", "metrics.json", "timing.json"} <= {file.name for file in files}
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in out + err


def test_a_failure_is_an_error_and_the_next_run_asks_it_alone(cli: Cli, server: Server, tmp_path: Path) -> None:
    server.misbehave = lambda body, number: Reply(400, b"no") if number == 3 else None
    code, _, err = cli(*run(server, "--limit", "6"))
    assert (code, "HTTP 400: no" in err) == (4, True)
    metrics = json.loads((folder_of(tmp_path) / "metrics.json").read_text())
    assert (metrics["errors"], metrics["score"]) == (1, None)
    failed = server.prompts[2]
    server.asked.clear()
    server.misbehave = lambda body, number: None
    code, _, err = cli(*run(server, "--limit", "6"))
    assert (code, server.prompts) == (0, [failed])


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--task", "mmlu@qwen"], 2, "mmlu@qwen (mini) on endpoint:"),
        (["--task", "gsm8k", "--judge-model", "endpoint:http://127.0.0.1:1/v1"], 3, "no server can be reached there"),
        (["--task", "gsm8k", "--judge-model", "gpt"], 2, "--judge-model gpt: expected endpoint:URL#NAME"),
        (["--task", "gsm8k", "--deterministic"], 2, "--deterministic: an endpoint decides itself"),
        (["--task", "gsm8k", "--model", "endpoint:nowhere"], 2, "expected endpoint:URL#NAME"),
        (["--task", "gsm8k", "--model", "endpoint:http://127.0.0.1:1/v1"], 3, "no server can be reached there"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_asked(
    cli: Cli, server: Server, words: list[str], code: int, expected: str
) -> None:
    server.fields = OPENAI
    found, _, err = cli("run", *(words if "--model" in words else [*words, "--model", server.name]))
    assert (found, expected in err) == (code, True), err
    assert [body for body in server.asked if "max_tokens" in body] == []


def test_settings_of_local_models_are_said_not_to_reach_it(cli: Cli, server: Server) -> None:
    code, _, err = cli(*run(server, "--limit", "2", "--dtype", "bfloat16"))
    assert code == 0
    assert "--dtype bfloat16 does not reach an endpoint" in err


def test_a_dry_run_asks_nothing_and_claims_no_tokens(cli: Cli, server: Server) -> None:
    code, out, err = cli(*run(server, "--dry-run"))
    assert code == 0, err
    assert out.count("unknown") == 2
    assert server.asked == []


# ------------------------------------------------------------------------------------------------ stopped and killed


@pytest.fixture
def session(server: Server, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start `run` as a process of its own, with so many requests in flight."""

    def start(flight: int = 1) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "qwen_eval", *run(server, "--batch-size", str(flight), "--format", "json")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def answers(tmp_path: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in tmp_path.rglob("answers.jsonl"))


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("not within 30 seconds")


def test_a_killed_run_goes_on_and_asks_nothing_again(
    server: Server, session: Callable[..., "subprocess.Popen[str]"], cli: Cli, tmp_path: Path
) -> None:
    speak = server.speak
    server.speak = lambda prompt: slowly(0.05)("") + speak(prompt)
    for goal in (5, 11):
        process = session()
        until(lambda goal=goal: len(server.asked) >= goal)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    stored, _ = read_answers(folder_of(tmp_path) / "answers.jsonl")
    assert len(stored) >= 6
    asked = Counter(server.prompts)
    code, resumed, err = cli(*run(server, "--format", "json"))
    assert code == 0, err
    assert f"{len(stored)} answer(s) taken from" in err
    twice = [prompt for prompt, times in Counter(server.prompts).items() if times > 1]
    # What was on its way when the process was killed is asked again, and nothing else.
    assert len(twice) <= 2
    assert len(server.prompts) - sum(asked.values()) == len(set(server.prompts)) - len(stored)
    code, alone, _ = cli(*run(server, "--format", "json", "--output-dir", "alone"))
    assert json.loads(resumed) == json.loads(alone)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_does_not_wait_for_answers_nobody_reads(
    server: Server, session: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, presses: int
) -> None:
    server.speak = lambda prompt: slowly(0.1 if len(server.asked) < 4 else 20.0 if presses == 2 else 2.0)("")

    process = session()
    # Three answers are written, and the fourth is waited for.
    until(lambda: len(server.asked) == 4 and answers(tmp_path) == 3)
    time.sleep(0.2)
    begun = time.monotonic()
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=15)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130, err
    assert "resume with  python -m qwen_eval run" in err
    assert "Traceback" not in err


def test_ctrl_c_keeps_every_answer_that_the_server_is_at(
    server: Server, session: Callable[..., "subprocess.Popen[str]"], cli: Cli, tmp_path: Path
) -> None:
    server.speak = lambda prompt: slowly(0.05 if len(server.asked) < 5 else 1.0)("")
    process = session(4)
    until(lambda: len(server.asked) >= 8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 130, err
    assert 8 <= len(server.asked) < len(set(map(str, server.prompts))) + 1
    assert answers(tmp_path) == len(server.asked)
    server.speak = slowly(0)
    assert cli(*run(server, "--format", "json"))[0] == 0
    assert set(Counter(map(str, server.prompts)).values()) == {1}
