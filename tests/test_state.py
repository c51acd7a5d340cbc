"""A state is one value: selecting, forking and joining envs never mixes or changes them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldsim.state import WorldState


def make_state(batch_size: int = 4, seed: int = 0) -> WorldState:
    g = torch.Generator().manual_seed(seed)
    return WorldState(
        {"a": torch.randn(batch_size, 3, generator=g), "b": torch.randn(batch_size, generator=g)},
        torch.arange(batch_size),
        torch.randn(batch_size, 5, generator=g),
    )


def rows(state: WorldState) -> list[tuple[torch.Tensor, ...]]:
    return [
        tuple(t[i] for t in (*state.memory.values(), state.steps, state.features))
        for i in range(len(state))
    ]


def assert_rows(state: WorldState, source: WorldState, expected: list[int]) -> None:
    assert state.batch_size == len(state) == len(expected)
    there = rows(source)
    for row, i in zip(rows(state), expected, strict=True):
        for a, b in zip(row, there[i], strict=True):
            assert torch.equal(a, b)


def test_indexing_selects_envs() -> None:
    state = make_state()
    assert_rows(state[1:3], state, [1, 2])
    assert_rows(state[[3, 0, 0]], state, [3, 0, 0])
    assert_rows(state[torch.tensor([2, 1])], state, [2, 1])
    assert_rows(state[torch.tensor([True, False, False, True])], state, [0, 3])
    assert_rows(state[2], state, [2])
    assert_rows(state[-1], state, [3])
    assert_rows(state[np.arange(4)[2]], state, [2])
    assert_rows(state[torch.tensor([0.0, 0.0, 3.0]).argmax()], state, [2])
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} is outside a batch of 4 states"):
            state[index]


def test_forks_are_neighbours_and_independent() -> None:
    state = make_state(2)
    forks = state.repeat(3)
    assert_rows(forks, state, [0, 0, 0, 1, 1, 1])
    forks.memory["a"][0] = 0
    assert state.memory["a"][0].any() and forks.memory["a"][1].any()


def test_cat_undoes_indexing() -> None:
    state = make_state()
    assert_rows(WorldState.cat([state[i] for i in range(4)]), state, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="empty list of states"):
        WorldState.cat([])


def test_memories_of_different_models_are_not_mixed() -> None:
    state = make_state()
    other = WorldState(state.memory | {"more": torch.zeros(4, 1)}, state.steps, state.features)
    for first, second in ((state, other), (other, state)):
        with pytest.raises(ValueError, match="different models: more is in one alone"):
            WorldState.cat([first, second])
        with pytest.raises(ValueError, match="different models: more is in one alone"):
            first.where(torch.tensor([True] * 4), second)


def test_where_chooses_by_env() -> None:
    state, other = make_state(seed=0), make_state(seed=1)
    mask = torch.tensor([True, False, True, False])
    chosen = rows(state.where(mask, other))
    for i, keep in enumerate(mask):
        for a, b in zip(chosen[i], rows(state if keep else other)[i], strict=True):
            assert torch.equal(a, b)


def test_nbytes_counts_everything_once_per_env() -> None:
    state = make_state(4)
    assert state.nbytes == 4 * (3 * 4 + 4 + 8 + 5 * 4)
    assert state.repeat(5).nbytes == 5 * state.nbytes
    assert "bytes_per_env=44" in repr(state)


@pytest.mark.parametrize(
    "copy", [WorldState.clone, lambda s: s[[0, 1, 2, 3]], lambda s: s.repeat(1)]
)
def test_copies_share_no_memory(copy: Callable[[WorldState], WorldState]) -> None:
    state = make_state()
    before = state.clone()
    other = copy(state)
    other.map(lambda t: t.zero_())
    assert_rows(state, before, [0, 1, 2, 3])


def test_device_move_keeps_values() -> None:
    state = make_state()
    assert state.to("cpu").device == torch.device("cpu")
    assert state.to("meta").device == torch.device("meta")
    assert_rows(state.to("cpu"), state, [0, 1, 2, 3])
