"""Passes on a device that is not the CPU: no tensor is made in the wrong place, every shape fits.

The meta device computes nothing, but refuses to mix devices as a GPU does; numbers are checked on the CPU elsewhere.
"""

from collections.abc import Callable

import pytest
import torch
import transformers

from qwen_eval.models.transformers import packed
from qwen_eval.models.transformers.packed import Pass, Piece, Prefix, Prompts, Slab, Step

META = torch.device("meta")


@pytest.fixture(params=["qwen2", "gemma3_text"])
def forward(request: pytest.FixtureRequest) -> Callable[[Pass, int, int], torch.Tensor]:
    """Return logits of a pass over so many tokens with so many wanted, by a bfloat16 model."""
    packed.register()
    config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[request.param](
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
    )
    with META:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.set_attn_implementation(packed.ATTENTION)

    def run(what: Pass, tokens: int, wanted: int) -> torch.Tensor:
        with torch.inference_mode():
            out = model(
                input_ids=torch.zeros(1, tokens, dtype=torch.long, device=META),
                position_ids=torch.zeros(1, tokens, dtype=torch.long, device=META),
                attention_mask=torch.ones(1, 1, 1, 1, device=META),
                logits_to_keep=torch.zeros(wanted, dtype=torch.long, device=META),
                use_cache=False,
                packed=what,
            )
        logits: torch.Tensor = out.logits
        return logits

    return run


@pytest.mark.parametrize("block", [1, 64])
def test_prompts_and_steps_stay_on_their_device(
    forward: Callable[[Pass, int, int], torch.Tensor], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK", {"meta": block})
    prefix, slab = Prefix(Prefix(None, ()), range(20)), Slab()
    slab.reserve(3, 9)
    assert prefix.parent
    prompts = Prompts(
        slab,
        [
            Piece(0, 20, prefix.parent, into=prefix),
            Piece(20, 5, prefix, row=0),
            Piece(25, 7, prefix, row=1),
            Piece(32, 3, prefix.parent, row=2),
        ],
    )
    logits = forward(prompts, 35, 3)
    assert (logits.device, logits.dtype, logits.shape) == (META, torch.bfloat16, (1, 3, 400))
    assert len(prompts.blocks) == (3 if block == 64 else 4)
    for groups in ([(prefix, [0, 1])], [(prefix, [0, 1, 2])]):
        logits = forward(Step(slab, [5, 7, 3], groups), 3, 3)
        assert (logits.device, logits.dtype, logits.shape) == (META, torch.bfloat16, (1, 3, 400))
    assert {held.device for held in (*slab.keys.values(), *prefix.keys.values())} == {META}
