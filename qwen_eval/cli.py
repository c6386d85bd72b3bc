"""The command line. Each command is a file in `qwen_eval/commands/`; heavy imports happen inside the commands.

click rather than argparse: environment variables, configuration files and "no such option … did you mean" come with it.
"""

import io
import os
import sys
from typing import NoReturn

import click

from qwen_eval import __version__
from qwen_eval.commands.compare import compare
from qwen_eval.commands.data import data
from qwen_eval.commands.export import export
from qwen_eval.commands.gate import gate
from qwen_eval.commands.import_ import import_
from qwen_eval.commands.profile import profile
from qwen_eval.commands.repair import repair
from qwen_eval.commands.run import run
from qwen_eval.commands.sandbox import sandbox
from qwen_eval.commands.score import score
from qwen_eval.commands.tasks import tasks
from qwen_eval.errors import QwenEvalError

__all__ = ["cli", "main"]


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 110,
    },
    epilog="--debug with any command shows the traceback of an error.",
)
@click.version_option(__version__, prog_name="qwen_eval")
def cli() -> None:
    """Evaluate language-model checkpoints: published prompts, published scoring rules, and how sure a score is."""


for command in (run, tasks, score, compare, gate, profile, data, sandbox, repair, export, import_):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit with its code (see `qwen_eval/errors.py`)."""
    debug = "--debug" in sys.argv or bool(os.environ.get("QWEN_EVAL_DEBUG"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows a question mark
    try:
        words = [word for word in sys.argv[1:] if word != "--debug"]
        code = cli.main(words, prog_name="python -m qwen_eval", standalone_mode=False)
    except click.ClickException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "python -m qwen_eval")
        click.echo(f"Error: {error.format_message()}\nNext: `{path} --help` lists what can be given.", err=True)
        sys.exit(2)
    except QwenEvalError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"Error: a bug of ours ({type(error).__name__}: {error}).\n"
            "Next: run the same command with --debug and report what it prints.",
            err=True,
        )
        sys.exit(70)
    sys.exit(code if isinstance(code, int) else 0)
