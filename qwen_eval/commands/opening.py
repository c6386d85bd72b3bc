"""Who answers what `run` asks: the models that were named, the judge, the sandboxes."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_eval.commands.evaluate import say
from qwen_eval.errors import UsageError

if TYPE_CHECKING:
    from qwen_eval.models.base import Judging, Model
    from qwen_eval.models.transformers.checkpoint import Checkpoint
    from qwen_eval.plan import Plan
    from qwen_eval.sandbox import Sandbox, Sessions

__all__ = ["located", "open_engine", "open_judge", "open_sandboxes"]


def open_engine(
    model: str,
    *,
    precision: str | None,
    adapter: Path | None,
    hub: str,
    engine: str,
    dtype: str,
    device: str,
    batch_size: int | None,
    deterministic: bool,
    verify: bool,
    setting: str | None = None,
    trusted: bool = False,
) -> "Model":
    """Return the model a user named, identified but not loaded. Raises UsageError, ModelError, DeviceError."""
    if model.startswith("endpoint:"):
        for flag, value in {"--precision": precision, "--adapter": adapter}.items():
            if value:
                raise UsageError(f"{flag} {value}: an endpoint's weights are loaded by its server.")
        if setting:
            raise UsageError(
                f"--settings {setting}: an endpoint decides itself what it does with long contexts.\n"
                "Next: leave out --settings, or choose a local model."
            )
        local = {"--engine": engine, "--dtype": dtype, "--device": device}
        return _endpoint(model, local, batch_size=batch_size, deterministic=deterministic)
    from qwen_eval.models.transformers.checkpoint import checked_dtype

    if dtype != "auto":
        if precision:
            raise UsageError(f"--dtype {dtype} and --precision {precision}: expected one of them, found both.")
        checked_dtype(dtype)
    checkpoint = located(model, hub=hub, adapter=adapter, precision=precision)
    # Idle worker threads that spin steal the processor from whoever has work on a busy machine; read at torch's import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from qwen_eval.models.transformers.engine import open_model

    settings: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size}
    settings |= {"setting": setting, "trusted": trusted}
    return open_model(checkpoint, engine=engine, say=say, deterministic=deterministic, verify=verify, **settings)


def located(model: str, *, hub: str, adapter: Path | None, precision: str | None) -> "Checkpoint":
    """Return the local checkpoint a user means; say where an adapter was trained on another one."""
    from qwen_eval.models.transformers.adapters import base_of
    from qwen_eval.models.transformers.checkpoint import locate

    checkpoint = locate(model, hub=hub, adapter=adapter, precision=precision)
    base = base_of(adapter) if adapter else ""
    if base and not checkpoint.name.lower().startswith(f"{Path(base).name.lower()}+"):
        say(f"Warning: --adapter {adapter} was trained on {base}; it is put onto {model}.")
    return checkpoint


def _endpoint(model: str, local: Mapping[str, str], *, batch_size: int | None, deterministic: bool) -> "Model":
    from qwen_eval.models.endpoint import EndpointModel

    if deterministic:
        raise UsageError(
            "--deterministic: an endpoint decides itself what it computes together.\n"
            "Next: leave out --deterministic, or choose a local model."
        )
    for flag, value in local.items():
        if value != "auto":
            say(f"{flag} {value} does not reach an endpoint: its server decides.")
    return EndpointModel(model, concurrency=batch_size, say=say)


def open_judge(name: str) -> "Judging | None":
    """Return the judge that was named, None where none was. Raises UsageError, ModelError."""
    if not name:
        return None
    from qwen_eval.models.connection import PREFIX
    from qwen_eval.models.endpoint import JudgeEndpoint

    if not name.startswith(PREFIX):
        raise UsageError(f"--judge-model {name}: expected {PREFIX}URL#NAME, found something else.")
    try:
        return JudgeEndpoint(name, say=say)
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "--judge-model")) from None


def open_sandboxes(
    stack: ExitStack, plans: Iterable["Plan"], *, judge: str, walls: Mapping[str, Any]
) -> "tuple[Sandbox | None, Sessions | None]":
    """Open what the plans need: a sandbox for programs, one for sessions. Raises SandboxError."""
    from qwen_eval import sandbox

    programs = any(plan.task.programs for plan in plans)
    sessions = any(plan.protocol.sessions for plan in plans)
    return (
        stack.enter_context(sandbox.Sandbox(judge=judge, **walls)) if programs else None,
        stack.enter_context(sandbox.Sessions(**walls)) if sessions else None,
    )
