"""Options that commands share, and how every option can also be given: QWEN_EVAL_<FLAG>, a YAML file."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from qwen_eval.errors import UsageError, did_you_mean
from qwen_eval.models.transformers.checkpoint import HUBS
from qwen_eval.report.tables import FORMATS

__all__ = [
    "BatchSize",
    "Lengths",
    "Limit",
    "Models",
    "config_file",
    "data_dir",
    "include_path",
    "long_context_options",
    "model_options",
    "named",
    "option",
    "output_dir",
    "output_format",
    "sandbox_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def option(*names: str, also: Iterable[str] = (), **settings: Any) -> Callable[[Command], Command]:
    """Return a click option that can also be given as the environment variable QWEN_EVAL_<FLAG> (or one of `also`)."""
    flag = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = "QWEN_EVAL_" + flag.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=[variable, *also], show_envvar=False, **settings)


def data_dir(command: Command) -> Command:
    """--data-dir, as in every command that reads data."""
    return option(
        "--data-dir",
        also=["QWEN_EVAL_DATA"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder with the datasets. Also QWEN_EVAL_DATA.",
    )(command)


def include_path(command: Command) -> Command:
    """--include-path, as in every command that finds tasks."""
    return option(
        "--include-path",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="A folder with task files of your own. May be repeated.",
    )(command)


def config_file(command: Command) -> Command:
    """--config, as in every command with many flags."""
    return option(
        "--config",
        type=click.Path(path_type=Path),
        callback=_load_config,
        is_eager=True,
        metavar="YAML",
        help="A file with any of these flags as `flag: value`.",
    )(command)


def output_dir(command: Command) -> Command:
    """--output-dir, as in every command that writes results."""
    return option(
        "--output-dir",
        type=click.Path(path_type=Path),
        default=Path("results"),
        show_default=True,
        metavar="DIR",
        help="Where results go: run folders, and measurements in `profile`.",
    )(command)


def output_format(command: Command) -> Command:
    """--format, as in every command that prints tables."""
    return option(
        "--format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="How tables are printed.",
    )(command)


def model_options(command: Command) -> Command:
    """--precision, --adapter, --hub, --device and --trust-remote-code, as in every command that loads models."""
    for add in (
        option(
            "--trust-remote-code/--no-trust-remote-code",
            is_flag=True,
            help="Run code that comes with a checkpoint. Qwen's own models never need it.",
        ),
        option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:N."),
        option(
            "--hub",
            type=click.Choice(HUBS),
            default=HUBS[0],
            show_default=True,
            help="Where a model's id is looked up. modelscope needs the package of that name.",
        ),
        option(
            "--adapter",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A folder with an adapter (LoRA, Q-LoRA by peft) that is put onto every model.",
        ),
        option(
            "--precision",
            multiple=True,
            metavar="NAME,…",
            help="fp32, bf16, fp16, int8, int4: each model in each of them, as if they were several models.",
        ),
    ):
        command = add(command)
    return command


def named(given: Iterable[str]) -> list[str]:
    """Return what an option named, several of them between commas or in several places, each once."""
    return list(dict.fromkeys(part.strip() for each in given for part in each.split(",") if part.strip()))


def sandbox_options(command: Command) -> Command:
    """--judge, --container and --unsafe-exec, as in every command that runs programs."""
    for add in (
        option(
            "--unsafe-exec/--no-unsafe-exec",
            is_flag=True,
            help="Run programs with your own rights, without a sandbox. Results are marked.",
        ),
        option(
            "--container",
            default="",
            metavar="ENGINE[:IMAGE]",
            help="docker, podman or runsc: the sandbox in a container, where ordinary users get no namespaces.",
        ),
        option(
            "--judge",
            type=click.Choice(("split", "official")),
            default="split",
            show_default=True,
            help="Who checks a program. split: the test out of its reach; official: both in one process, as published.",
        ),
    ):
        command = add(command)
    return command


def long_context_options(command: Command) -> Command:
    """--settings, --lengths, --blocks, --documents and --plot: what is beyond a model's training length."""
    for add in (
        option(
            "--plot",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Draw perplexity by length into a file (.png, .svg, .pdf).",
        ),
        option(
            "--documents",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="A folder of text files of your own, for perplexity.",
        ),
        option("--blocks", type=click.IntRange(min=1), metavar="N", help="Blocks of each length, for perplexity."),
        option("--lengths", type=Lengths(), default="", help="Lengths of the blocks in tokens, for perplexity."),
        option(
            "--settings",
            default="",
            metavar="SETTING,…",
            help="Beyond the training length: plain, dynamic_ntk, dynamic, yarn or linear, with +logn, +window. "
            "Each is a run of its own. Default: as the checkpoint says.",
        ),
    ):
        command = add(command)
    return command


class Lengths(click.ParamType[tuple[int, ...]]):
    """One or more numbers of tokens, separated by commas."""

    name = "N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not all(part.isdecimal() and int(part) > 1 for part in parts):
            self.fail(f"expected lengths from 2 tokens, such as 1024,2048, found {value!r}.", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


class Limit(click.ParamType[int | float]):
    """A number of samples (1 or more), or a share of them written with a point (0.1)."""

    name = "N|0.1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return an int for a number, a float for a share."""
        text = str(value)
        if not re.fullmatch(r"-?[0-9]+|-?[0-9]*\.[0-9]+", text):
            self.fail(f"expected a number of samples (8) or a share (0.1), found {text!r}.", param, ctx)
        number: int | float = float(text) if "." in text else int(text)
        if number <= 0 or (isinstance(number, float) and number > 1):
            self.fail(f"expected at least 1 sample, or a share above 0 and up to 1.0, found {text}.", param, ctx)
        return number


class Models(click.ParamType[str]):
    """One or more models, separated by commas. A variable is taken whole: paths may have spaces in them."""

    name = "MODEL,…"
    envvar_list_splitter = "\0"


class BatchSize(click.ParamType[int | None]):
    """A number of rows, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return None for auto."""
        if value is None or value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"expected a number from 1, or auto, found {value!r}.", param, ctx)
        return int(value)


def _load_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Read a YAML file whose keys are the command's flags into click's defaults; flags and variables win over it."""
    if value is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(value.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {value}: cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{value}, line {mark.line + 1}" if mark else str(value)
        raise UsageError(
            f"{where}: expected YAML, found something else ({getattr(error, 'problem', error)})."
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"{value}, line 1: expected `flag: value` lines, found {type(content).__name__}.")
    names = {option.name: option for option in ctx.command.params if option.name not in ("config", "help")}
    defaults = {}
    for key, setting in content.items():
        name = str(key).replace("-", "_")
        if name not in names:
            flags = [known.replace("_", "-") for known in names if known]
            line = _line_of(value, str(key))
            raise UsageError(f"{value}, line {line}: unknown setting '{key}'.{did_you_mean(str(key), flags)}")
        listed = setting if isinstance(setting, list) else [setting]
        if not all(isinstance(each, str | int | float) for each in listed):
            line = _line_of(value, str(key))
            raise UsageError(f"{value}, line {line}: expected a value or a list of values for '{key}'.")
        several = getattr(names[name], "multiple", False)
        defaults[name] = listed if several else ",".join(map(str, listed)) if len(listed) > 1 else listed[0]
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return value


def _line_of(file: Path, key: str) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.strip().strip("'\"").startswith(key)), 1)
