"""The sandbox inside a container, with an engine that is none: it runs what comes behind the image right here."""

from pathlib import Path

import pytest

from qwen_eval.errors import SandboxError, UsageError
from qwen_eval.sandbox import Program, Sandbox

ENGINE = """#!/bin/sh
printf '%s\\n' "$@" > "$0.said"
while [ "$1" != "IMAGE" ]; do shift; done
shift
exec "$@"
"""


def install(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / f"{name}.said"


@pytest.mark.parametrize(
    ("engine", "image", "unmask"),
    [
        ("docker", "", "systempaths=unconfined"),
        ("podman", "registry.example:5000/small", "unmask=ALL"),
        ("runsc", "", "systempaths=unconfined"),
    ],
)
def test_programs_are_judged_in_the_container(
    engine: str, image: str, unmask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = image or "debian:stable-slim"
    said = install(tmp_path, "docker" if engine == "runsc" else engine, ENGINE.replace("IMAGE", used), monkeypatch)
    with Sandbox(workers=1, container=f"{engine}:{image}" if image else engine) as box:
        assert box.mode == engine
        source = "import numpy\ndef two():\n    return int(numpy.ones(2).sum())\n"
        box.submit(3, Program(source=source, test="assert two() == 2", entry_point="two"))
        [(ticket, outcome)] = box.collect()
    assert (ticket, outcome.passed) == (3, True)
    words = said.read_text().splitlines()
    assert words[:5] == ["run", "--rm", "--network", "none", "--cap-add"]
    assert {"seccomp=unconfined", "apparmor=unconfined", unmask} < set(words)
    assert ("runsc" in words) == (engine == "runsc")
    mounts = [word for word in words if word.startswith("--volume=")]
    assert [mount for mount in mounts if not mount.endswith(":ro")] == mounts[:1]  # all but the socket's folder
    folder = mounts[0].removeprefix("--volume=").partition(":")[0]
    assert not Path(folder).exists()


def test_what_an_engine_says_when_it_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "docker",
        "#!/bin/sh\necho warning >&2\necho Cannot connect to the daemon. >&2\nexit 125\n",
        monkeypatch,
    )
    with pytest.raises(SandboxError, match=r"docker started no container \(Cannot connect to the daemon\.\)"):
        Sandbox(container="docker").__enter__()


def test_engines_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="podman cannot be started"):
        Sandbox(container="podman").__enter__()
    with pytest.raises(UsageError, match="one of docker, podman, runsc, not 'lxc'"):
        Sandbox(container="lxc:x").__enter__()
    with pytest.raises(UsageError, match="exclude each other"):
        Sandbox(container="docker", unsafe=True)
