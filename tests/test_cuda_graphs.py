"""CUDA graphs: what is replayed is what was recorded, and nothing in it waits for the device."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from test_world_model import assert_equal, episode, noise, observed
from tiny import tiny_config, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import worldsim
from worldsim.backbone import CausalConfig
from worldsim.cuda_graphs import CudaGraphs, _Recording
from worldsim.own_dreams import draw_dream_noise, end_in_dreams
from worldsim.world_model import WorldModel

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "is_nonzero")
"""Operations whose result decides what the host does next, or that come from the host."""


class NoWaiting(TorchDispatchMode):
    """Fails where something cannot be part of a CUDA graph."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = str(func)
        assert not any(part in name for part in WAITING), name
        if name.startswith(("aten.index.Tensor", "aten.index_put")):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


def test_a_dreamed_step_and_an_observed_frame_wait_for_nothing_on_the_device() -> None:
    model = worldsim.load("memory-maze-9x9", dtype=torch.float32)  # it has all that a model can
    assert model.places is not None and model.places.occupancy is not None
    contexts = worldsim.load_contexts("memory-maze-9x9")
    actions, frames = (torch.from_numpy(x[:2, :8]) for x in (contexts.actions, contexts.frames))
    state = model.observe(model.initial_state(2), actions, frames)
    led, z = torch.tensor([1, 4]), noise(model, 2)
    with torch.no_grad(), NoWaiting():
        model._imagine(2, True, state, led, z)
        model._observe_one(state, led[:, None], frames[:, :1])
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        bool(state.steps.max() > 0)


class Direct(CudaGraphs):
    """Calls what would be replayed."""

    calls = 0

    def __call__(
        self, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], key: Hashable
    ) -> list[Tensor]:
        self.calls += 1
        return list(function(*tensors))


def test_steps_are_packed_into_tensors_and_out_again() -> None:
    model = tiny_model()
    state, actions, z = observed(model), torch.tensor([1, 4]), noise(model, 2)
    expected = model.imagine(state, actions, noise=z, num_denoising_steps=2)
    model.cuda_graphs = Direct()
    dream = model.imagine(state, actions, noise=z, num_denoising_steps=2)
    assert model.cuda_graphs.calls == 1
    assert_equal(dream.state, expected.state)
    for mine, its in zip(dream[1:], expected[1:], strict=True):
        assert torch.equal(mine, its)


def test_frames_observed_one_by_one_are_replayed() -> None:
    model = tiny_model()
    actions, frames = episode(2, 3)
    state = model.observe(model.initial_state(2), actions[:, :2], frames[:, :2])
    expected = model.observe(state, actions[:, 2:], frames[:, 2:])
    model.cuda_graphs = Direct()
    assert_equal(model.observe(state, actions[:, 2:], frames[:, 2:]), expected)
    assert model.cuda_graphs.calls == 1
    model.observe(state, actions[:, :2], frames[:, :2])  # several at once are few launches
    assert model.cuda_graphs.calls == 1


def test_own_dreams_are_replayed_too() -> None:
    model = tiny_model()
    actions, frames = episode(2, 7)
    latents, poses = model.encode(frames), torch.zeros(2, 7, 3)
    signal = torch.ones(2, 7)
    drawn = draw_dream_noise(2, 3, model, torch.Generator().manual_seed(0))
    expected = end_in_dreams(model, latents, actions, poses, signal, drawn)
    model.cuda_graphs = Direct()
    replayed = end_in_dreams(model, latents, actions, poses, signal, drawn)
    assert model.cuda_graphs.calls == 3
    for mine, its in zip(replayed, expected, strict=True):
        assert torch.equal(mine, its)


class Recorder(CudaGraphs):
    """Keeps what it would record, and calls it instead of a replay."""

    MAX_RECORDINGS = 2

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Callable[..., Sequence[Tensor]]] = []

    def _record(
        self, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
    ) -> _Recording:
        self.recorded.append(function)
        inputs, outputs = [t.clone() for t in tensors], [t.clone() for t in function(*tensors)]

        class Graph:
            @staticmethod
            def replay() -> None:
                for output, new in zip(outputs, function(*inputs), strict=True):
                    output.copy_(new)

        return _Recording(Graph(), inputs, outputs)  # type: ignore[arg-type]


def test_what_was_not_replayed_for_longest_is_recorded_again() -> None:
    graphs, x = Recorder(), torch.arange(3.0)
    functions = [lambda x, i=i: [x + i] for i in range(3)]
    order = [0, 1, 0, 2, 0, 1]  # 2 takes the place of 1, and 1 later that of 2
    first = graphs(functions[0], [x], 0)[0]
    for i in order:
        assert torch.equal(graphs(functions[i], [x + i], i)[0], x + 2 * i)
    assert [functions.index(f) for f in graphs.recorded] == [0, 1, 2, 1]
    assert torch.equal(first, x)  # not written over by later replays


def test_autocast_and_shapes_are_recorded_apart() -> None:
    graphs = Recorder()
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def product(x: Tensor) -> list[Tensor]:
        return [x @ weights]

    x = torch.ones(2, 4)
    assert graphs(product, [x], "product")[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert graphs(product, [x], "product")[0].dtype == torch.bfloat16
    assert graphs(product, [x], "product")[0].dtype == torch.float32
    assert len(graphs.recorded) == 2
    assert len(graphs(product, [x[:1]], "product")[0]) == 1 and len(graphs.recorded) == 3


def test_other_steps_and_dreams_without_pictures_are_recorded_apart() -> None:
    model = tiny_model()
    state, actions, z = observed(model), torch.tensor([1, 4]), noise(model, 2)
    options: list[dict[str, Any]] = [
        {"num_denoising_steps": 1},
        {"num_denoising_steps": 2},
        {"num_denoising_steps": 2, "decode": False},
    ]
    expected = [model.imagine(state, actions, noise=z, **o) for o in options]
    graphs = model.cuda_graphs = Recorder()
    graphs.MAX_RECORDINGS = 3
    for o, e in 2 * list(zip(options, expected, strict=True)):
        dream = model.imagine(state, actions, noise=z, **o)
        assert torch.equal(dream.frame, e.frame)
        assert_equal(dream.state, e.state)
    assert len(graphs.recorded) == 3


def test_copies_and_saved_models_have_recorded_nothing() -> None:
    model, graphs = tiny_model(), CudaGraphs()
    graphs._recordings["key"] = lambda: None  # type: ignore[assignment]
    for copied in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert type(copied) is CudaGraphs and not copied._recordings
    model.cuda_graphs = graphs  # which are of a GPU, and it is on the CPU now
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.cuda_graphs is None and model.cuda_graphs is graphs


def test_models_of_other_settings_have_graphs_where_theirs_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WorldModel, "_obstacle_to_graphs", lambda self: None)
    model = tiny_model()
    assert model.reconfigured(dream_signal=0.5).cuda_graphs is None
    model.use_cuda_graphs()
    other = model.reconfigured(dream_signal=0.5)
    assert other.cuda_graphs is not None and other.cuda_graphs is not model.cuda_graphs


def test_models_that_are_not_on_a_gpu_have_no_graphs() -> None:
    with pytest.raises(ValueError, match="need a CUDA device; the model is on cpu"):
        tiny_model().use_cuda_graphs()
    model = tiny_model()
    model.use_cuda_graphs(if_possible=True)
    assert model.cuda_graphs is None


def test_recordings_go_where_weights_move() -> None:
    model = tiny_model()
    model.cuda_graphs = Direct()
    model.double()
    assert model.cuda_graphs is None  # there are none where it is now


def on_gpu(model: WorldModel) -> WorldModel:
    return model.to("cuda")


@pytest.mark.gpu
def test_graphs_dream_what_the_model_dreams() -> None:
    model = on_gpu(tiny_model())
    replayed = copy.deepcopy(model)
    replayed.use_cuda_graphs()
    copied = copy.deepcopy(replayed)  # records anew, with its own weights
    for batch_size in (2, 3, 2):
        actions, frames = (t.cuda() for t in episode(batch_size))
        state = model.observe(model.initial_state(batch_size), actions, frames)
        given, kept, before = state, state.clone(), None
        for step in range(3):
            z = noise(model, batch_size, seed=step).cuda()
            action = torch.full((batch_size,), step, device="cuda")
            expected = model.imagine(state, action, noise=z)
            dream = replayed.imagine(state, action, noise=z)
            assert_equal(dream.state, expected.state)
            assert_equal(copied.imagine(state, action, noise=z).state, expected.state)
            assert torch.equal(dream.frame, expected.frame)
            assert torch.equal(dream.reward, expected.reward)
            if before is not None:  # what was dreamed before is not written over
                assert_equal(*before)
            before = (dream.state, expected.state.clone())
            state = expected.state
        assert_equal(given, kept)  # a state is never written to


@pytest.mark.gpu
def test_graphs_observe_what_the_model_observes() -> None:
    model = worldsim.load("memory-maze-9x9", device="cuda")
    replayed = worldsim.load("memory-maze-9x9", device="cuda")
    replayed.use_cuda_graphs()
    contexts = worldsim.load_contexts("memory-maze-9x9")
    actions, frames = (
        torch.from_numpy(x[:3, :6]).cuda() for x in (contexts.actions, contexts.frames)
    )
    states = [
        m.observe(m.initial_state(3), actions[:, :3], frames[:, :3]) for m in (model, replayed)
    ]
    for i in range(3, 6):
        part = actions[:, i : i + 1], frames[:, i : i + 1]
        states = [m.observe(s, *part) for m, s in zip((model, replayed), states, strict=True)]
        assert_equal(*states)


def check_graphs_of_a_map(device: str, graphs: CudaGraphs) -> None:
    model, replayed = (worldsim.load("memory-maze-9x9", device=device) for _ in range(2))
    replayed.cuda_graphs = graphs
    contexts = worldsim.load_contexts("memory-maze-9x9")
    for n in (2, 3, 2):
        actions, frames = (
            torch.from_numpy(x[:n, :20]).to(device) for x in (contexts.actions, contexts.frames)
        )
        state = model.observe(model.initial_state(n), actions, frames)
        for step in range(3):
            z = noise(model, n, step).to(device)
            forward = torch.ones(n, dtype=torch.int64, device=device)
            expected, dream = (m.imagine(state, forward, noise=z) for m in (model, replayed))
            assert_equal(dream.state, expected.state)
            assert torch.equal(dream.frame, expected.frame)
            state = expected.state


def test_dreams_with_a_map_are_packed_and_out_again() -> None:
    graphs = Direct()
    check_graphs_of_a_map("cpu", graphs)
    assert graphs.calls == 9


@pytest.mark.gpu
def test_graphs_dream_with_a_map_and_after_others_took_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CudaGraphs, "MAX_RECORDINGS", 1)
    check_graphs_of_a_map("cuda", CudaGraphs())


def check_graphs_of_own_dreams(device: str, graphs: CudaGraphs) -> None:
    model = tiny_model().to(device).train()
    replayed = copy.deepcopy(model)
    replayed.cuda_graphs = graphs
    actions, frames = (t.to(device) for t in episode(2, 7))
    latents, poses = model.encode(frames), torch.zeros(2, 7, 3, device=device)
    signal = torch.ones(2, 7, device=device)
    drawn = draw_dream_noise(2, 3, model, torch.Generator(device).manual_seed(0))
    ends = []
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            expected, end = (
                end_in_dreams(m, latents, actions, poses, signal, drawn) for m in (model, replayed)
            )
        assert all(torch.equal(a, e) for a, e in zip(end, expected, strict=True))
        ends.append(end[0])
        with torch.no_grad():
            for p in (*model.parameters(), *replayed.parameters()):
                p.mul_(1.01)
    assert not torch.equal(*ends)  # the weights matter


def test_own_dreams_of_training_steps_are_packed_and_out_again() -> None:
    graphs = Direct()
    check_graphs_of_own_dreams("cpu", graphs)
    assert graphs.calls == 6


@pytest.mark.gpu
def test_graphs_dream_in_training_steps_with_the_weights_of_now() -> None:
    check_graphs_of_own_dreams("cuda", CudaGraphs())


def first_reward(model: WorldModel) -> Tensor:
    """Of dreams that begin with nothing remembered."""
    actions = torch.zeros(2, dtype=torch.int64, device="cuda")
    return model.imagine(model.initial_state(2), actions, noise=noise(model, 2).cuda()).reward


@pytest.mark.gpu
def test_what_is_recorded_in_inference_mode_is_replayed_outside() -> None:
    model = on_gpu(tiny_model())
    model.use_cuda_graphs()
    with torch.inference_mode():
        expected = first_reward(model).clone()
    assert torch.equal(first_reward(model), expected)


@pytest.mark.gpu
def test_recordings_begin_anew_where_weights_move_on_a_gpu() -> None:
    model = on_gpu(tiny_model())
    model.use_cuda_graphs()
    before = model.cuda_graphs
    model.double()
    assert model.cuda_graphs is not None and model.cuda_graphs is not before
    assert model.cpu().cuda_graphs is None


@pytest.mark.gpu
def test_graphs_read_the_weights_of_now() -> None:
    model = on_gpu(tiny_model())
    model.use_cuda_graphs()
    before = first_reward(model)
    with torch.no_grad():
        for p in model.reward_head.parameters():
            p.add_(0.5 * torch.randn_like(p))
    assert not torch.equal(first_reward(model), before)


@pytest.mark.gpu
def test_memories_that_grow_have_no_graphs() -> None:
    backbone = CausalConfig(d_model=32, num_layers=1, head_dim=16)
    model = WorldModel(dataclasses.replace(tiny_config(), backbone=backbone)).eval()
    with pytest.raises(ValueError, match="memory of constant size; that of causal grows"):
        on_gpu(model).use_cuda_graphs()
