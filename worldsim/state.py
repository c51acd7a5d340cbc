"""Everything a world model remembers, as one immutable value.

A `WorldState` is a batch of memories: recurrent states, attention windows, the number of frames
seen and the last read-out. It is never written in place, so forking it (for planning) is indexing.

The default backbone's memory has constant size. One that grows keeps its newest frame last; when
envs of different ages come together, the shorter memories get empty slots in front, which the
backbone tells from frames by the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class WorldState:
    """A batch of memories.

    Args:
        memory: named tensors of the backbone, each batch first.
        steps: frames observed or dreamed so far, (b,) int64.
        features: memory read-out after the last committed frame, (b, d) float32.
    """

    __slots__ = ("features", "memory", "steps")

    def __init__(self, memory: Mapping[str, Tensor], steps: Tensor, features: Tensor) -> None:
        self.memory = dict(memory)
        self.steps = steps
        self.features = features

    @property
    def batch_size(self) -> int:
        return self.steps.shape[0]

    @property
    def device(self) -> torch.device:
        return self.steps.device

    @property
    def nbytes(self) -> int:
        """Bytes of the whole batch; divide by `batch_size` for one env."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [*self.memory.values(), self.steps, self.features]

    def map(self, function: Callable[[Tensor], Tensor]) -> WorldState:
        """Apply one function to every tensor."""
        memory = {name: function(t) for name, t in self.memory.items()}
        return WorldState(memory, function(self.steps), function(self.features))

    def __getitem__(self, index: slice | int | np.integer | list[int] | Tensor) -> WorldState:
        """Select envs; an integer keeps the batch dimension."""
        if isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool:
            index = int(index)
        if isinstance(index, int | np.integer):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"index {index} is outside a batch of {self.batch_size} states")
            index = [int(index)]
        return self.map(lambda t: t[index])

    def __len__(self) -> int:
        return self.batch_size

    def repeat(self, n: int) -> WorldState:
        """Fork every env n times: env i becomes rows i*n to (i+1)*n - 1."""
        return self.map(lambda t: t.repeat_interleave(n, dim=0))

    def where(self, mask: Tensor, other: WorldState) -> WorldState:
        """This state where `mask` ((b,) bool) is true, `other` elsewhere.

        Raises:
            ValueError: the other is the memory of another model.
        """

        def choose(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

        return self._combined(other, choose)

    def put(self, rows: Tensor, others: WorldState) -> WorldState:
        """This state with the envs at `rows` ((k,) int64, each once) replaced by k others.

        Raises:
            ValueError: the others are memories of another model.
        """
        return self._combined(others, lambda a, b: a.index_copy(0, rows, b.to(a.dtype)))

    def _combined(
        self, other: WorldState, function: Callable[[Tensor, Tensor], Tensor]
    ) -> WorldState:
        """Apply one function to every tensor and the other's, memories of one length."""
        _check_names([self, other])
        memory = {
            name: function(*_same_length([t, other.memory[name]]))
            for name, t in self.memory.items()
        }
        return WorldState(
            memory, function(self.steps, other.steps), function(self.features, other.features)
        )

    def check_like(self, initial: WorldState, name: str) -> None:
        """Refuse memories of a model of other sizes than that which made a state.

        Args:
            initial: the model's initial state; a dimension of no length may have grown.
            name: of this state's origin, for the message.

        Raises:
            ValueError: a part is missing, is too many, or has another shape.
        """
        expected = initial.memory | {"features": initial.features}
        for part, t in (self.memory | {"features": self.features}).items():
            sizes = [] if part not in expected else list(expected[part].shape[1:])
            fits = len(sizes) == t.ndim - 1 and all(
                a == b or b == 0 for a, b in zip(t.shape[1:], sizes, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"{name} is of another model: its {part} is {tuple(t.shape[1:])}, not "
                    f"{tuple(sizes) or 'there'}"
                )
        if missing := expected.keys() - self.memory.keys() - {"features"}:
            raise ValueError(f"{name} is of another model: it lacks {', '.join(sorted(missing))}")

    def to(self, device: torch.device | str) -> WorldState:
        return self.map(lambda t: t.to(device))

    def clone(self) -> WorldState:
        return self.map(torch.clone)

    @staticmethod
    def cat(states: Sequence[WorldState]) -> WorldState:
        """Concatenate batches.

        Raises:
            ValueError: `states` is empty, or they are memories of different models.
        """
        if not states:
            raise ValueError("cannot concatenate an empty list of states")
        _check_names(states)
        memory = {
            k: torch.cat(_same_length([s.memory[k] for s in states])) for k in states[0].memory
        }
        return WorldState(
            memory,
            torch.cat([s.steps for s in states]),
            torch.cat([s.features for s in states]),
        )

    def __repr__(self) -> str:
        size = self.nbytes / max(self.batch_size, 1)
        return f"WorldState(batch_size={self.batch_size}, bytes_per_env={size:.0f})"


def _check_names(states: Sequence[WorldState]) -> None:
    for state in states[1:]:
        if different := state.memory.keys() ^ states[0].memory.keys():
            raise ValueError(
                f"memories of different models: {', '.join(sorted(different))} is in one alone"
            )


def _same_length(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pad memories of different ages with zeros in front, along the dimension that grows."""
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) == 1:
        return list(tensors)
    dims = {len(shape) for shape in shapes}
    growing = [i for i, sizes in enumerate(zip(*shapes, strict=False)) if len(set(sizes)) > 1]
    if len(dims) != 1 or len(growing) != 1:
        raise ValueError(f"memories of shapes {sorted(shapes)} are not of one model")
    dim = growing[0] + 1
    longest = max(t.shape[dim] for t in tensors)
    padded = []
    for t in tensors:
        shape = list(t.shape)
        shape[dim] = longest - t.shape[dim]
        padded.append(torch.cat([t.new_zeros(shape), t], dim=dim))
    return padded
