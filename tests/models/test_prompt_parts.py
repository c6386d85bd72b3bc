"""What a prompt can hold beside turns: declared tools, a turn that has begun; and the checkpoint's own penalty."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import agree, answers_of, packed
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval.errors import UsageError
from qwen_eval.models.transformers.checkpoint import Checkpoint
from qwen_eval.models.transformers.reference import ReferenceModel
from qwen_eval.models.transformers.tokenization import Tokenizer
from qwen_eval.prompts import chat
from qwen_eval.task import Chat, Generate, Generated

# The tools stand in the system turn, one a line; markers of the template's own around them.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = (0, 1, 2)


def tools(description: str) -> str:
    return json.dumps([{"type": "function", "function": {"name": "add", "description": description, "parameters": {}}}])


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat checkpoint whose template takes tools, and whose configuration asks for a penalty."""
    made = tmp_path_factory.mktemp("with tools")
    shutil.copytree(tiny_checkpoint("qwen2"), made, dirs_exist_ok=True)
    (made / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    generation = {"eos_token_id": 2, "repetition_penalty": 1.3}
    (made / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return made


def test_declared_tools_reach_the_template(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    text = tokenizer.render(Chat(chat("2+3?").turns, tools=tools("adds numbers")))
    assert '"description": "adds numbers"' in text
    assert "adds numbers" not in tokenizer.render(chat("2+3?"))
    assert (
        tokenizer.inner.decode(tokenizer.encode_prompt(Chat(chat("2+3?").turns, tools=tools("adds numbers")))) == text
    )


def test_a_template_that_drops_declared_tools_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    tokenizer = Tokenizer(tiny_checkpoint("qwen2", chat=True))
    assert tokenizer.render(chat("2+3?"))
    with pytest.raises(UsageError, match="declares functions, and the model's chat template says nothing of them"):
        tokenizer.render(Chat(chat("2+3?").turns, tools=tools("adds numbers")))


@settings(max_examples=40, deadline=None)
@given(
    typed=st.text(alphabet='ab"\\é\n<|im_end|>', max_size=12).map(lambda text: f"{text}<|im_end|>{text}"),
    where=st.sampled_from(["user", "tools", "begun"]),
)
def test_a_marker_is_text_wherever_it_was_typed(folder: Path, typed: str, where: str) -> None:
    tokenizer = Tokenizer(folder)

    def prompt(text: str) -> Chat:
        said = {name: text if name == where else "fine" for name in ("user", "tools", "begun")}
        return Chat(chat(said["user"]).turns, tools=tools(said["tools"]), begun=said["begun"])

    ids, clean = tokenizer.encode_prompt(prompt(typed)), tokenizer.encode_prompt(prompt("fine"))
    assert [ids.count(marker) for marker in MARKERS] == [clean.count(marker) for marker in MARKERS]
    assert tokenizer.inner.decode(ids) == tokenizer.render(prompt(typed))


def test_a_begun_turn_is_gone_on_with_behind_the_same_tokens(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    begun = Chat(chat("2+3?").turns, begun="Thought: I add.\nAction:")
    bare = Chat(chat("2+3?").turns)
    assert tokenizer.render(begun) == tokenizer.render(bare) + begun.begun
    ids = tokenizer.encode_prompt(begun)
    assert ids[: len(tokenizer.encode_prompt(bare))] == tokenizer.encode_prompt(bare)
    assert [
        answer.text
        for answer in answers_of(packed(folder), [Generate(prompt=begun), Generate(prompt=bare)])
        if isinstance(answer, Generated)
    ]


def test_both_engines_agree_on_tools_and_begun_turns(folder: Path) -> None:
    requests = [
        Generate(prompt=Chat(chat(text).turns, tools=declared, begun=begun), max_new_tokens=12, own_penalty=penalty)
        for text in ("2+3?", "How many apples?")
        for declared in ("", tools("adds"))
        for begun in ("", "Thought: well")
        for penalty in (False, True)
    ]
    reference = ReferenceModel(Checkpoint("tiny", folder), device="cpu", batch_size=1)
    wanted = answers_of(reference, requests)
    for batch_size in (1, 3, None):
        agree(answers_of(packed(folder, batch_size=batch_size), requests), wanted)


def test_the_own_penalty_is_that_of_transformers_and_only_where_asked(folder: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer(folder)
    differing = 0
    for text in ("2+3?", "Ann has 3 apples.", "A train leaves at 9."):
        prompt = chat(text)
        ids = torch.tensor([tokenizer.encode_prompt(prompt)])
        texts = {}
        for penalty in (1.0, 1.3):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=0,
            )
            new = out[0, ids.shape[1] :].tolist()
            texts[penalty] = tokenizer.decode([token for token in new if token != 2])
        plain, own = answers_of(
            packed(folder),
            [Generate(prompt=prompt, max_new_tokens=16), Generate(prompt=prompt, max_new_tokens=16, own_penalty=True)],
        )
        assert isinstance(plain, Generated)
        assert isinstance(own, Generated)
        assert (plain.text, own.text) == (texts[1.0], texts[1.3])
        differing += plain.text != own.text
    assert differing
