"""`run --dry-run`: what would run, and what it could tell."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qwen_eval.commands.evaluate import Planned

__all__ = ["print_dry_run", "shared_length"]


def print_dry_run(planned: Sequence["Planned"], format: str) -> None:
    """Print a line a model and plan: items, prompt tokens, those after sharing prefixes, the detectable difference."""
    from tqdm import tqdm

    from qwen_eval.report.tables import draw
    from qwen_eval.stats import detectable_difference

    rows = []
    for asked, plan in [(each, plan) for each in planned for plan in each.plans]:
        interval = 0.5 if sys.stderr.isatty() else 15
        requests = list(plan.first_requests())
        bar = tqdm(requests, desc=plan.name, unit="prompt", leave=False, mininterval=interval)
        prompts = [asked.model.prompt_tokens(request) for _, request in bar]
        rows.append(
            {
                "Task": plan.name,
                **({"Model": asked.name} if len(planned) > 1 else {}),
                "Shots": plan.shots,
                "Items": f"{len(plan.samples):,} of {plan.total:,}" + (f" x {plan.repeats}" * (plan.repeats > 1)),
                # An endpoint keeps its tokens to itself.
                "Prompt tokens": f"{sum(map(len, prompts)) * plan.repeats:,}" if any(prompts) else "unknown",
                "Sharing prefixes": f"{shared_length(prompts):,}" if any(prompts) else "unknown",
                "Detectable difference": "-"
                if plan.lengths
                else f"{100 * detectable_difference(len(plan.samples)):.1f} points",
            }
        )
    click.echo(draw(rows, format))
    click.echo(
        "Sharing prefixes: tokens left when every prefix that two prompts have in common is computed once.", err=True
    )
    click.echo(
        "Detectable difference: between two checkpoints on the same items, one-sided 5 %, power 80 %, "
        "when 5 % of the answers change sides.",
        err=True,
    )


def shared_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens are left when every shared prefix is computed once: the size of the prompts' trie."""
    total = 0
    before: tuple[int, ...] = ()
    for prompt in sorted(prompts):
        common = next((at for at, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
        total += len(prompt) - min(common, len(prompt))
        before = prompt
    return total
