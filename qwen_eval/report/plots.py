"""Plots of what was measured, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from qwen_eval.errors import UsageError
from qwen_eval.profile import Measurement

__all__ = ["check_plot", "plot_profile"]

KINDS = (".pdf", ".png", ".svg")


def check_plot(file: Path) -> None:
    """Raise UsageError where a plot cannot be written to a file of that name."""
    if file.suffix not in KINDS or not file.absolute().parent.is_dir():
        raise UsageError(
            f"--plot {file}: expected a file that ends in {', '.join(KINDS)}, in a folder that exists.\n"
            "Next: choose another name."
        )


def plot_profile(measured: Sequence[Measurement], file: Path) -> None:
    """Draw tokens a second and the peak of memory as bars: a group for every pair of lengths, a colour for a model."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys((each.context, each.new) for each in measured))
    series = list(dict.fromkeys((each.model, each.precision, each.engine) for each in measured))
    figure = Figure(figsize=(5 + 1.5 * len(lengths), 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    width = 0.8 / len(series)
    for number, which in enumerate(series):
        mine = {
            (each.context, each.new): each for each in measured if (each.model, each.precision, each.engine) == which
        }
        at = [index + (number - (len(series) - 1) / 2) * width for index, pair in enumerate(lengths) if pair in mine]
        shown = [mine[pair] for pair in lengths if pair in mine]
        label = f"{which[0]}, {which[1]}, {which[2]}"
        for axes, values in (
            (panels[0], [each.speed for each in shown]),
            (panels[1], [each.peak_memory_bytes / 2**30 for each in shown]),
        ):
            bars = axes.bar(at, values, width=0.95 * width, label=label)
            axes.bar_label(bars, fmt="%.3g", fontsize="x-small")
    for axes, title in zip(
        panels, ("New tokens a second, prefill included", "Peak memory with loading, GB"), strict=True
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(lengths)), [f"{context:,} + {new:,}" for context, new in lengths])
        axes.set_xlabel("tokens of context + new ones")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize="small", frameon=False)
    figure.savefig(file, dpi=150, metadata={"Software": None} if file.suffix == ".png" else None)
