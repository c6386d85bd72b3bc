"""What prompts share, and what of it stays: against brute force over all prompts and all prefixes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_eval.models.transformers import prefixes
from qwen_eval.models.transformers.packed import Prefix
from qwen_eval.models.transformers.prefixes import PrefixTree, Waiting
from qwen_eval.models.transformers.tokenization import common_length


@dataclass
class Asked:
    """Something that waits; `name` tells equal prompts apart."""

    tokens: list[int]
    name: int = 0
    stretch: float = 1.0


def runs(most: int) -> st.SearchStrategy[list[int]]:
    """Prompts that often share their beginning: two tokens, in runs."""
    run = st.tuples(st.integers(0, 1), st.integers(1, 5))
    return st.lists(run, min_size=1, max_size=most).map(lambda found: [token for token, n in found for _ in range(n)])


@contextmanager
def shortest(tokens: int) -> Iterator[None]:
    with patch.object(prefixes, "SHORTEST", tokens):
        yield


def lined_up(prompts: Sequence[Sequence[int]]) -> Waiting[Asked]:
    waiting: Waiting[Asked] = Waiting()
    waiting.add(Asked(list(tokens), name) for name, tokens in enumerate(prompts))
    return waiting


# ------------------------------------------------------------------------------------------------------------- waiting


@given(st.lists(st.one_of(st.none(), st.lists(runs(3), max_size=4)), max_size=12))
def test_prompts_wait_in_the_order_of_their_tokens_and_equal_ones_in_order_of_arrival(
    portions: list[list[list[int]] | None],
) -> None:
    """A portion of None takes one out."""
    waiting: Waiting[Asked] = Waiting()
    kept: list[Asked] = []
    names = 0
    for portion in portions:
        if portion is None:
            if kept:
                assert waiting.first is kept[0]
                assert waiting.take() is kept.pop(0)
        else:
            new = [Asked(tokens, names + at) for at, tokens in enumerate(portion)]
            names += len(new)
            waiting.add(new)
            kept = sorted([*kept, *new], key=lambda each: (each.tokens, each.name))
        assert len(waiting) == len(kept)
        assert bool(waiting) == bool(kept)
        if kept:
            assert waiting.repeats == (len(kept) > 1 and kept[0].tokens == kept[1].tokens)
    assert [waiting.take() for _ in range(len(waiting))] == kept


@given(st.lists(runs(6), min_size=1, max_size=8), st.integers(0, 20), st.sampled_from([1, 2, 3, 7]))
def test_prefixes_end_where_the_next_prompt_parts_from_later_ones(
    prompts: list[list[int]], begin: int, least: int
) -> None:
    waiting = lined_up(prompts)
    first, *later = sorted(prompts)
    begin = min(begin, len(first) - 1)
    shared = {min(common_length(first, other), len(first) - 1) for other in later}
    with shortest(least):
        cuts = waiting.branches(begin)
    assert set(cuts) <= shared
    steps = [end - start for start, end in zip([begin, *cuts], cuts, strict=False)]
    assert all(step >= least for step in steps)
    # Nothing could be added to them without a step that is too short.
    for end in shared - set(cuts):
        assert end - begin < least or any(abs(end - cut) < least for cut in cuts)
    assert len(waiting) == len(prompts)


def test_the_prefixes_of_a_benchmark_nest() -> None:
    """An instruction for all, exemplars for a subject, the same question with two endings."""
    rule, shots, question = [1] * 20, [2] * 30, [3] * 16
    prompts = [rule + shots + question + [4], rule + shots + question + [5], rule + shots + [6] * 9, [*rule, 7]]
    assert lined_up(prompts).branches(0) == [20, 50, 66]
    assert lined_up(prompts).branches(20) == [50, 66]
    assert lined_up(prompts).branches(50) == [66]
    assert lined_up(prompts).branches(51) == []
    assert lined_up([*prompts, rule + shots[:10] + [8]]).branches(0) == [20, 50, 66]


def test_of_equal_prompts_all_but_the_last_token_is_shared() -> None:
    assert lined_up([[1] * 17, [1] * 17]).branches(0) == [16]
    assert lined_up([[1] * 16, [1] * 16]).branches(0) == []
    assert lined_up([[1] * 17]).branches(0) == []


def test_prompts_of_another_stretch_share_nothing_however_alike_they_are() -> None:
    waiting: Waiting[Asked] = Waiting()
    waiting.add([Asked([1] * 40, 0, 3.0), Asked([1] * 30, 1), Asked([1] * 40, 2, 3.0), Asked([1] * 40, 3)])
    assert waiting.branches(0) == [29]
    assert [waiting.take().name for _ in range(2)] == [1, 3]
    assert waiting.repeats
    assert waiting.branches(0) == [39]
    tree = PrefixTree(1000)
    compute(tree.add(tree.find([1] * 41), [1] * 40))
    assert tree.find([1] * 41).end == 40
    stretched = tree.find([1] * 41, 3.0)
    assert (stretched.end, stretched.stretch) == (0, 3.0)
    compute(tree.add(stretched, [1] * 20))
    assert tree.find([1] * 41, 3.0).end == 20
    assert tree.find([1] * 19 + [2], 3.0).stretch == 3.0, "a part of it, too"
    tree.trim(0)
    assert tree.find([1] * 41).end == tree.find([1] * 41, 3.0).end == 0


# ---------------------------------------------------------------------------------------------------------------- tree


def compute(node: Prefix) -> None:
    """Stand in for a pass: one layer's key of a token is its id, its value its position."""
    node.keys[0] = torch.tensor(node.tokens, dtype=torch.float64).reshape(1, -1, 1)
    node.values[0] = torch.arange(node.start, node.end, dtype=torch.float64).reshape(1, -1, 1)


def held_by(node: Prefix) -> list[int]:
    """The tokens whose keys and values the chain of a prefix holds; each of its parts must fit the others."""
    chain = node.chain()
    assert all(part.tokens for part in chain)
    assert [part.start for part in chain] == [0, *(part.end for part in chain[:-1])][: len(chain)]
    keys = [key for part in chain for key in part.keys[0][0, :, 0].tolist()]
    values = [value for part in chain for value in part.values[0][0, :, 0].tolist()]
    assert keys == [token for part in chain for token in part.tokens]
    assert values == list(range(node.end))
    return [int(key) for key in keys]


def reachable(tree: PrefixTree) -> list[Prefix]:
    found: list[Prefix] = []
    stack = [tree.root]
    while stack:
        children = [child for some in stack.pop().children.values() for child in some]
        found += children
        stack += children
    return found


def path(node: Prefix) -> list[int]:
    return [token for part in node.chain() for token in part.tokens]


@dataclass
class Model:
    """A tree, and all that anyone holds of it: prefixes with the tokens they must go on holding."""

    tree: PrefixTree = field(default_factory=lambda: PrefixTree(0))
    pending: list[tuple[Prefix, list[int]]] = field(default_factory=list)
    rows: list[tuple[Prefix, list[int]]] = field(default_factory=list)
    users: list[Prefix] = field(default_factory=list)

    def find(self, prompt: list[int]) -> Prefix:
        before = {id(node): (path(node), bool(node.keys), node.start) for node in reachable(self.tree)}
        limit = len(prompt) - 1
        # What a node is worth to this prompt: all it shares, where that ends inside a node at least SHORTEST of it.
        best = 0
        for tokens, computed, start in before.values():
            common = common_length(tokens, prompt[:limit])
            whole = common == len(tokens)
            if whole or (computed and common - start >= prefixes.SHORTEST):
                best = max(best, common)
        found = self.tree.find(prompt)
        assert path(found) == prompt[: found.end]
        assert best <= found.end <= limit
        assert all(node.keys or any(node is waits for waits, _ in self.pending) for node in found.chain())
        return found

    def add(self, prompt: list[int], upto: int) -> None:
        end = min(upto, len(prompt) - 1)
        parent = self.find(prompt)
        if any(common_length(tokens, prompt[:end]) >= parent.end + prefixes.SHORTEST for _, tokens in self.pending):
            # A pass never computes the same part twice: prompts wait in order, and part where prefixes end.
            self.compute()
            parent = self.find(prompt)
        if end - parent.end >= prefixes.SHORTEST:
            self.pending.append((self.tree.add(parent, prompt[parent.end : end]), prompt[:end]))

    def compute(self) -> None:
        for node, _ in self.pending:
            compute(node)
        self.rows += self.pending
        self.pending = []

    def undo(self) -> None:
        for node, _ in self.pending:
            self.tree.drop(node)
        self.pending = []
        assert all(node.keys for node in reachable(self.tree))

    def hold(self, prompt: list[int]) -> None:
        found = self.find(prompt)
        found.count_users(1)
        self.users.append(found)
        self.rows.append((found, prompt[: found.end]))

    def release(self) -> None:
        if self.users:
            self.users.pop(0).count_users(-1)

    def trim(self, most: int) -> None:
        before = reachable(self.tree)
        self.tree.trim(most)
        after = reachable(self.tree)
        stays = {id(node) for node in after}
        dropped = [node for node in before if id(node) not in stays]
        assert not any(node.users for node in dropped)
        total = sum(len(node.tokens) for node in after)
        free = [node for node in after if not node.users and not node.children]
        # Down to the budget, or until all that stays is in use, or before something that is.
        assert total <= most or not free
        if dropped:
            last = max(node.used for node in dropped)
            assert all(node.used >= last for node in free)
            # No more than needed: the last one that went was one too many.
            assert total + max(len(node.tokens) for node in dropped if node.used == last) > most

    def check(self) -> None:
        for node, tokens in self.rows:
            assert held_by(node) == tokens
        for node in reachable(self.tree):
            assert node.parent is not None
            assert node.parent.end == node.start
            assert node.users == sum(any(node is part for part in user.chain()) for user in self.users)
            if node.keys:
                held_by(node)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), runs(5), st.integers(1, 30)),
        st.tuples(st.just("find"), runs(5)),
        st.tuples(st.just("hold"), runs(5)),
        st.tuples(st.just("release")),
        st.tuples(st.just("compute")),
        st.tuples(st.just("undo")),
        st.tuples(st.just("trim"), st.integers(0, 40)),
    ),
    min_size=4,
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(steps, st.sampled_from([1, 2, 4]))
def test_a_prompt_finds_the_longest_prefix_there_is_whatever_was_cut_and_let_go(
    plan: list[tuple[str, list[int], int]], least: int
) -> None:
    model = Model()
    with shortest(least):
        for name, *more in plan:
            if name in ("trim", "hold", "release"):
                model.compute()
            # What a row attends to stays whole for as long as the row has it, in the tree or not.
            getattr(model, name)(*more)
            model.check()


def test_a_prefix_that_is_being_computed_is_not_cut() -> None:
    tree = PrefixTree(0)
    node = tree.add(tree.root, [1] * 40)
    assert tree.find([1] * 30 + [2]) is tree.root
    assert tree.find([1] * 40 + [2]) is node
    compute(node)
    assert tree.find([1] * 30 + [2]).end == 30


def test_a_part_below_the_shortest_is_not_cut_off() -> None:
    tree = PrefixTree(0)
    node = tree.add(tree.root, [1] * 40)
    compute(node)
    assert tree.find([1] * 15 + [2]) is tree.root
    assert node.end - node.start == 40
    assert tree.find([1] * 16 + [2]).end == 16
    assert node.start == 16


def test_the_last_token_of_a_prompt_is_left_to_ask() -> None:
    tree = PrefixTree(0)
    compute(tree.add(tree.root, [1] * 40))
    assert tree.find([1] * 40).end == 39
    assert tree.find([1] * 41).end == 40
    assert tree.find([1]) is tree.root


def test_rows_that_attend_to_a_prefix_do_so_after_it_is_cut() -> None:
    tree = PrefixTree(0)
    held = tree.add(tree.root, list(range(50)))
    compute(held)
    own = Prefix(held, [90, 91])
    compute(own)
    for at in (40, 20):
        tree.find([*range(at), 99])
    assert held_by(held) == list(range(50))
    assert held_by(own) == [*range(50), 90, 91]
    assert len(own.chain()) == 4


def test_a_prefix_that_is_taken_out_takes_what_continues_it_along() -> None:
    tree = PrefixTree(0)
    first = tree.add(tree.root, [1] * 20)
    compute(first)
    compute(tree.add(first, [2] * 20))
    compute(tree.add(tree.root, [3] * 20))
    tree.drop(first)
    assert tree.find([1] * 20 + [2] * 20 + [4]) is tree.root
    assert tree.find([3] * 20 + [4]).end == 20
    # Another one has its place by now: it stays.
    again = tree.add(tree.root, [1] * 20)
    tree.drop(first)
    assert tree.find([1] * 20 + [4]) is again


def test_the_longest_unused_prefixes_go_first() -> None:
    tree = PrefixTree(60)
    for token in range(5):
        compute(tree.add(tree.root, [token] * 20))
        tree.find([token] * 21)
    tree.find([0] * 21)
    tree.find([2] * 21).users += 1
    tree.find([4] * 21)
    tree.trim()
    assert sorted(node.tokens[0] for node in reachable(tree)) == [0, 2, 4]
    tree.trim(20)
    assert sorted(node.tokens[0] for node in reachable(tree)) == [2]
    tree.trim(0)
    assert sorted(node.tokens[0] for node in reachable(tree)) == [2]


def test_what_continues_a_prefix_goes_before_it_and_with_it_all_can_go() -> None:
    tree = PrefixTree(0)
    node = tree.root
    for token in range(4):
        node = tree.add(node, [token] * 20)
        compute(node)
    whole = [token for token in range(4) for _ in range(20)]
    assert tree.find([*whole, 9]).end == 80
    tree.trim(45)
    assert tree.find([*whole, 9]).end == 40
    tree.trim()
    assert reachable(tree) == []


def test_the_memory_of_a_part_that_was_let_go_is_free() -> None:
    """A cut makes two of one: the tree counts the tokens of the part it keeps, so no more may be held."""
    tree = PrefixTree(0)
    compute(tree.add(tree.root, [1] * 1000))
    part = tree.find([1] * 20 + [2])
    part.users += 1
    tree.trim()
    assert not part.children
    assert part.keys[0].untyped_storage().nbytes() == 20 * part.keys[0].itemsize


def test_of_two_that_begin_alike_the_one_that_goes_on_alike_is_found() -> None:
    """Two subjects whose prompts share too few words to be cut there."""
    tree = PrefixTree(0)
    prompts = [[1] * 15 + [subject] * 30 for subject in (2, 3, 4)]
    nodes = [tree.add(tree.find([*prompt, 9]), prompt) for prompt in prompts]
    for node in nodes:
        compute(node)
    assert [tree.find([*prompt, 8]) for prompt in prompts] == nodes
    tree.drop(nodes[1])
    assert [tree.find([*prompt, 8]) for prompt in prompts] == [nodes[0], tree.root, nodes[2]]
    assert tree.find(prompts[2][:40]).end == 39
    assert held_by(nodes[2]) == prompts[2]
