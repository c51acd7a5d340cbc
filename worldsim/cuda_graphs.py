"""Functions of tensors, recorded as CUDA graphs and replayed with a single launch.

A dreamed step of a small batch is thousands of small kernels, and launching each takes a GPU's host
longer than running it takes the GPU. A CUDA graph launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldsim.state import WorldState


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class CudaGraphs:
    """Records functions at their first call with tensors of a shape, and replays them after that.

    What is recorded reads the weights where they were: they may change in place, but not move.
    """

    WARM_UP = 3
    MAX_RECORDINGS = 8
    """How many are kept; the one that was not replayed for longest goes first."""

    def __init__(self) -> None:
        self._recordings: dict[Hashable, _Recording] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pool = None if not torch.cuda.is_available() else torch.cuda.graph_pool_handle()

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[()]]:
        """Of a copied or saved model, whose weights lie elsewhere: nothing is recorded yet."""
        return CudaGraphs, ()

    def __call__(
        self,
        function: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        key: Hashable,
    ) -> list[Tensor]:
        """What `function(*tensors)` returns, in tensors of one's own.

        Args:
            function: waits for nothing on the device and draws no random numbers.
            tensors: its arguments, on one CUDA device.
            key: tells functions apart, and all else that changes what they do, but for autocast.
        """
        kind = tensors[0].device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (key, cast, *((tuple(t.shape), t.dtype, t.device) for t in tensors))
        recording = self._recordings.pop(key, None)
        if recording is None:
            while len(self._recordings) >= self.MAX_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            recording = self._record(function, tensors)
        self._recordings[key] = recording  # behind all others
        for static, given in zip(recording.inputs, tensors, strict=True):
            static.copy_(given)
        recording.graph.replay()
        # Copies: the next replay writes where this one did.
        return [t.clone() for t in recording.outputs]

    def _stream_on(self, device: torch.device) -> torch.cuda.Stream:
        """One for all recordings: only on the same stream do they share the pool's memory."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _record(
        self, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
    ) -> _Recording:
        with torch.inference_mode(False):  # else they could be written to in that mode alone
            inputs = [t.clone() for t in tensors]
        cached = torch.is_autocast_cache_enabled()
        # Weights that autocast has converted before would be gone when they are read in a replay.
        torch.set_autocast_cache_enabled(False)
        try:
            here = torch.cuda.current_stream(inputs[0].device)
            stream = self._stream_on(inputs[0].device)
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(self.WARM_UP):  # whatever is set up at first calls is set up here
                    function(*inputs)
            here.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                outputs = list(function(*inputs))
        finally:
            torch.set_autocast_cache_enabled(cached)
        return _Recording(graph, inputs, outputs)


def replay(
    graphs: CudaGraphs,
    step: Callable[..., tuple[Any, ...]],
    state: WorldState,
    *tensors: Tensor,
    key: Hashable,
) -> tuple[Any, ...]:
    """`step(state, *tensors)`, which returns a state and other tensors, by a graph.

    Args:
        step, key: as for `CudaGraphs`.
        state: memory of constant size.
        tensors: what else the step takes.
    """
    names, size = sorted(state.memory), len(state.memory) + 2

    def pack(state: WorldState) -> list[Tensor]:
        return [*(state.memory[name] for name in names), state.steps, state.features]

    def unpack(packed: Sequence[Tensor]) -> WorldState:
        *memory, steps, features = packed
        return WorldState(dict(zip(names, memory, strict=True)), steps, features)

    def function(*given: Tensor) -> list[Tensor]:
        after, *others = step(unpack(given[:size]), *given[size:])
        return pack(after) + others

    results = graphs(function, pack(state) + list(tensors), key)
    return unpack(results[:size]), *results[size:]
