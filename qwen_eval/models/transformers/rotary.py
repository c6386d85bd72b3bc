"""Long contexts in a model of transformers': rotary embedding by row or token, LogN on queries, windows."""

from collections.abc import Sequence
from typing import Any

import torch

from qwen_eval.errors import ModelError
from qwen_eval.models.longcontext import LongContext, narrower

__all__ = ["SCALED", "Rotary", "install", "query_scales", "register_scaled"]

SCALED = "qwen_eval_scaled"
"""The name under which the reference engine's attention for long contexts is registered."""


class Rotary(torch.nn.Module):
    """A model's rotary embedding, stretched for each row or token by a number of its own.

    `stretches` is set before a forward pass: [rows, 1] or [rows, tokens]. The model's own module is asked once for each
    number among them, with other frequencies, so that every kind of layout stays as it is.
    """

    def __init__(self, inner: Any, config: Any, long: LongContext) -> None:
        """Wrap a module of the default type. Raises ModelError where its frequencies are not what we know."""
        super().__init__()
        self.inner = inner
        self.config = config
        self.long = long
        self.stretches: Sequence[Sequence[float]] = ((1.0,),)
        self._tables: dict[float, tuple[torch.Tensor, float]] = {}
        found = getattr(inner, "inv_freq", None)
        if not isinstance(found, torch.Tensor) or not torch.allclose(found.cpu(), self._table(1.0)[0], rtol=1e-4):
            raise ModelError(
                f"--settings {long.name}: expected one plain rotary embedding in the model, found "
                f"{type(inner).__name__}.\nNext: leave out --settings, or write rope_parameters into its config.json."
            )

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines, as the model's own module does."""
        stretches = torch.tensor(self.stretches, dtype=torch.float64, device=x.device)
        found: tuple[torch.Tensor, torch.Tensor] | None = None
        for stretch in dict.fromkeys(each for row in self.stretches for each in row):
            frequencies, self.inner.attention_scaling = self._table(stretch)
            self.inner.inv_freq = frequencies.to(x.device)
            cosines, sines = self.inner(x, position_ids)
            if found is None:
                found = cosines, sines
            else:
                mine = (stretches == stretch)[..., None]
                found = torch.where(mine, cosines, found[0]), torch.where(mine, sines, found[1])
        assert found is not None
        return found

    def _table(self, stretch: float) -> tuple[torch.Tensor, float]:
        """Return the frequencies for a stretch, [head size / 2] in float32, and the scale of cosines and sines."""
        if stretch not in self._tables:
            self._tables[stretch] = self._computed(stretch)
        return self._tables[stretch]

    def _computed(self, stretch: float) -> tuple[torch.Tensor, float]:
        rope = self.config.rope_parameters
        base, size = float(rope["rope_theta"]), 2 * self.inner.inv_freq.shape[-1]
        if self.long.rope == "yarn" and stretch != 1:
            return self._yarn(stretch)
        if self.long.rope in ("dynamic_ntk", "dynamic") and size > 2:
            base *= stretch ** (size / (size - 2))
        frequencies = 1.0 / (base ** (torch.arange(0, size, 2).float() / size))
        return frequencies / stretch if self.long.rope == "linear" else frequencies, 1.0

    def _yarn(self, stretch: float) -> tuple[torch.Tensor, float]:
        import copy

        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = copy.deepcopy(self.config)
        config.rope_parameters = {
            **self.config.rope_parameters,
            "rope_type": "yarn",
            "factor": stretch,
            "original_max_position_embeddings": self.long.native,
        }
        frequencies, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
        return frequencies, float(scaling)


def install(model: Any, config: Any, long: LongContext) -> Rotary:
    """Give a model the rotary embedding of its long contexts. Raises ModelError."""
    places = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    if len(places) != 1:
        raise ModelError(f"--settings {long.name}: expected a model with one rotary embedding, found {len(places)}.")
    name, inner = places[0]
    rotary = Rotary(inner, config, long)
    model.set_submodule(name, rotary)
    return rotary


def query_scales(long: LongContext, positions: torch.Tensor) -> torch.Tensor | None:
    """Return what the queries at these positions, [rows, tokens], are multiplied by; None where it is 1 throughout."""
    if not long.logn or not int(positions.max()) >= long.native:
        return None
    # Float64: the logarithm of a large number over that of another.
    counted = (positions + 1).clamp(min=long.native).double()
    return (counted.log() / torch.tensor(float(long.native), dtype=torch.float64).log()).float()


def register_scaled() -> None:
    """Make `SCALED` known to transformers: its own attention, with scaled queries and a window for each layer."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(SCALED, _attention)
    # The mask is always there, so that a layer's window can be taken out of it.
    AttentionMaskInterface.register(
        SCALED, lambda *args, **more: sdpa_mask(*args, **{**more, "allow_is_causal_skip": False})
    )


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    query_scale: torch.Tensor | None = None,
    windows: Sequence[int | None] | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Return [rows, tokens, heads, head size]; the mask is [rows, 1, tokens, keys], True where a key is seen."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query_scale is not None:
        query = query * query_scale[:, None, :, None].to(query)
    window = narrower(sliding_window, windows, module.layer_idx)
    if window is not None:
        # Rows end at the right edge, so the distance between columns is that between positions.
        places = torch.arange(key.shape[2], device=key.device)
        attention_mask = attention_mask & (places > places[-query.shape[2] :, None] - window)
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return result
