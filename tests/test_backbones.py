"""Every backbone streams what it computes in parallel, sees no future, and remembers honestly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import NUM_ACTIONS, leave_nothing_at_zero, tiny_config, tiny_contexts
from torch import Tensor, nn

import worldsim.checkpoint as checkpoint
from worldsim.backbone import (
    BackboneConfig,
    BlockSSMConfig,
    CausalConfig,
    DFoTConfig,
    FARConfig,
    FrameSSMConfig,
    Memory,
    count_backbone_parameters,
    count_parameters,
    make_backbone,
    match_parameters,
)
from worldsim.diffusion import sample_signal_levels
from worldsim.dream import DreamVectorEnv
from worldsim.frame_attention import KeySource, frame_attention
from worldsim.own_dreams import draw_dream_noise, end_in_dreams
from worldsim.pose import PoseConfig, token_poses
from worldsim.state import WorldState
from worldsim.world_model import WorldModel

GRID = (2, 2)
D = 16
SMALL = {"d_model": D, "num_layers": 2, "head_dim": 8, "mlp_ratio": 2}
SSM = {"d_state": 4, "chunk_size": 4}
CONFIGS: dict[str, BackboneConfig] = {
    "block_ssm": BlockSSMConfig(**SMALL, **SSM, block_sizes=(1, 2), window=3),
    "block_1": BlockSSMConfig(**SMALL, **SSM, block_sizes=(1,), window=3),
    "ssm": BlockSSMConfig(**SMALL, **SSM, block_sizes=(2,), window=0),
    "ssm_local": BlockSSMConfig(**SMALL, **SSM, block_sizes=(2,), window=3),
    "causal": CausalConfig(**SMALL),
    "causal_window": CausalConfig(**SMALL, window=4),
    "dfot": DFoTConfig(**SMALL, window=5),
    "far": FARConfig(**SMALL, window=3),
    "far_columns": FARConfig(**SMALL, window=3, coarse_patch=(2, 1)),
    "frame_ssm": FrameSSMConfig(**SMALL, **SSM, d_frame=32),
}
every_backbone = pytest.mark.parametrize("name", CONFIGS)


def make(name: str, seed: int = 0, pose: PoseConfig | None = None) -> nn.Module:
    """A backbone whose output depends on everything: no weight is left at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = make_backbone(CONFIGS[name], GRID, pose)
        leave_nothing_at_zero(backbone)
    return backbone.eval()


def inputs(batch: int, frames: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, frames, GRID[0] * GRID[1], D, generator=g)
    return x, torch.randn(batch, frames, D, generator=g)


def no_steps(batch: int) -> Tensor:
    return torch.zeros(batch, dtype=torch.int64)


def token_walk(batch: int, frames: int, seed: int = 2) -> Tensor:
    """Poses of tokens (b, t, n, 3)."""
    g = torch.Generator().manual_seed(seed)
    return token_poses(4 * torch.rand(batch, frames, 3, generator=g), GRID, 80.0)


def run(
    backbone: nn.Module,
    x: Tensor,
    c: Tensor,
    memory: Memory | None = None,
    done: int = 0,
    poses: Tensor | None = None,
) -> tuple[Tensor, Memory]:
    memory = backbone.initial_state(len(x)) if memory is None else memory
    return backbone(x, c, memory, no_steps(len(x)) + done, poses=poses)


def stream(
    backbone: nn.Module, x: Tensor, c: Tensor, parts: list[int], poses: Tensor | None = None
) -> tuple[Tensor, Memory]:
    outputs, memory, done = [], backbone.initial_state(len(x)), 0
    for size in parts:
        part = slice(done, done + size)
        seen_from = None if poses is None else poses[:, part]
        y, memory = run(backbone, x[:, part], c[:, part], memory, done, seen_from)
        outputs.append(y)
        done += size
    return torch.cat(outputs, 1), memory


@every_backbone
@pytest.mark.parametrize(
    "pose",
    [None, PoseConfig(), PoseConfig(per_head=True, learned=True)],
    ids=["actions", "poses", "learned"],
)
@pytest.mark.parametrize("parts", [[1] * 13, [5, 1, 4, 3], [12, 1]], ids=str)
@torch.no_grad()
def test_streaming_is_parallel(name: str, parts: list[int], pose: PoseConfig | None) -> None:
    backbone = make(name, pose=pose)
    x, c = inputs(2, 13)
    poses = token_walk(2, 13) if pose is not None else None
    whole, memory = run(backbone, x, c, poses=poses)
    streamed, streamed_memory = stream(backbone, x, c, parts, poses)
    torch.testing.assert_close(streamed, whole, rtol=1e-3, atol=1e-4)
    assert memory.keys() == streamed_memory.keys()
    for key, tensor in memory.items():
        torch.testing.assert_close(streamed_memory[key], tensor, rtol=1e-3, atol=1e-4)


@every_backbone
@torch.no_grad()
def test_only_differences_of_poses_matter(name: str) -> None:
    backbone = make(name, pose=PoseConfig())
    x, c = inputs(2, 9)
    poses = token_walk(2, 9)
    moved = poses + torch.tensor([3.0, -5.0, 1.0])
    other = poses.flip(1)
    y, y_moved, y_other = (run(backbone, x, c, poses=p)[0] for p in (poses, moved, other))
    torch.testing.assert_close(y_moved, y, rtol=1e-3, atol=1e-4)
    assert (y_other - y).abs().max() > 0.01


@every_backbone
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_the_future_is_not_seen(name: str, training: bool) -> None:
    if training and name == "dfot":
        pytest.skip("bidirectional within a window while training, see the test of that")
    backbone = make(name).train(training)
    x, c = inputs(1, 9)
    for changed in (x.clone(), c.clone()):
        changed[:, 6] += 1
        before, _ = run(backbone, x, c)
        after, _ = run(backbone, *((changed, c) if changed.ndim == 4 else (x, changed)))
        torch.testing.assert_close(after[:, :6], before[:, :6], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, 6], before[:, 6], atol=1e-3)


@torch.no_grad()
def test_dfot_sees_its_whole_window_in_training_and_no_other() -> None:
    backbone = make("dfot").train()
    x, c = inputs(1, 12)  # windows 0-4, 5-9, 10-11
    before, _ = run(backbone, x, c)
    changed = x.clone()
    changed[:, 8] += 1
    after, _ = run(backbone, changed, c)
    differs = (after - before).abs().amax((0, 2, 3)) > 1e-4
    assert differs.tolist() == [False] * 5 + [True] * 5 + [False] * 2


@torch.no_grad()
def test_dfot_use_is_its_training_on_one_window() -> None:
    """The last frame of a window comes out the same in both modes."""
    backbone = make("dfot")
    x, c = inputs(2, 5)
    last, _ = run(backbone, x, c)
    trained, _ = run(backbone.train(), x, c)
    torch.testing.assert_close(last[:, -1], trained[:, -1], rtol=1e-4, atol=1e-5)


def reach(name: str, frames: int = 14) -> list[bool]:
    """Which frames the last one's output depends on."""
    backbone = make(name)
    x, c = inputs(1, frames)
    x.requires_grad_()
    y, _ = run(backbone, x, c)
    y[:, -1].square().sum().backward()
    assert x.grad is not None
    return (x.grad.abs().amax((0, 2, 3)) > 0).tolist()


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("dfot", "causal_window")])
def test_memories_reach_back_to_the_first_frame(name: str) -> None:
    assert all(reach(name))


@pytest.mark.parametrize(("name", "frames"), [("dfot", 5), ("causal_window", 1 + 2 * 3)])
def test_windows_forget(name: str, frames: int) -> None:
    assert reach(name) == [False] * (14 - frames) + [True] * frames


@every_backbone
@torch.no_grad()
def test_memory_grows_only_where_it_must(name: str) -> None:
    backbone = make(name)
    x, c = inputs(1, 24)

    def size(frames: int) -> int:
        memory = run(backbone, x[:, :frames], c[:, :frames])[1]
        return sum(t.numel() for t in memory.values())

    growth = size(24) - size(12)
    tokens = {"causal": 4, "far": 1, "far_columns": 2}.get(name, 0)
    assert growth == 12 * tokens * 2 * D * SMALL["num_layers"]


@every_backbone
@torch.no_grad()
def test_memory_is_never_written_to(name: str) -> None:
    backbone = make(name)
    x, c = inputs(2, 8)
    _, memory = run(backbone, x[:, :6], c[:, :6])
    before = {k: t.clone() for k, t in memory.items()}
    first, _ = run(backbone, x[:, 6:], c[:, 6:], memory, 6)
    again, _ = run(backbone, x[:, 6:], c[:, 6:], memory, 6)
    assert torch.equal(first, again)
    assert all(torch.equal(memory[k], t) for k, t in before.items())


@every_backbone
@torch.no_grad()
def test_sparing_the_memory_changes_no_output(name: str) -> None:
    backbone = make(name)
    x, c = inputs(2, 8)
    _, memory = run(backbone, x[:, :6], c[:, :6])
    steps = no_steps(2) + 6
    expected, _ = backbone(x[:, 6:], c[:, 6:], memory, steps)
    spared, _ = backbone(x[:, 6:], c[:, 6:], memory, steps, update=False)
    torch.testing.assert_close(spared, expected, rtol=1e-5, atol=1e-5)


@every_backbone
@torch.no_grad()
def test_envs_of_different_ages_share_a_batch(name: str) -> None:
    backbone = make(name)
    x, c = inputs(1, 12)
    ages = (0, 2, 9)
    states = []
    for age in ages:
        memory = backbone.initial_state(1)
        if age:
            _, memory = run(backbone, x[:, :age], c[:, :age], memory)
        states.append(WorldState(memory, torch.tensor([age]), torch.zeros(1, 1)))
    together = WorldState.cat(states)
    new_x, new_c = inputs(3, 2, seed=7)
    y, memory = backbone(new_x, new_c, together.memory, together.steps)
    following = WorldState(memory, together.steps + 2, together.features)
    for i, (age, state) in enumerate(zip(ages, states, strict=True)):
        own, _ = run(backbone, new_x[i : i + 1], new_c[i : i + 1], state.memory, age)
        torch.testing.assert_close(y[i : i + 1], own, rtol=1e-4, atol=1e-4)
    # Selecting the youngest forgets the slots that only the oldest filled.
    youngest = following[0]
    _, memory = backbone(*inputs(1, 1), youngest.memory, youngest.steps)
    expected = run(backbone, *inputs(1, 3))[1]
    assert {k: t.shape for k, t in memory.items()} == {k: t.shape for k, t in expected.items()}
    # `where` and `put` between ages are a choice by env.
    own, _ = run(backbone, new_x[1:2], new_c[1:2], states[1].memory, 2)
    for mixed in (
        states[2].where(torch.tensor([False]), states[1]),
        states[2].put(torch.tensor([0]), states[1]),
    ):
        y, _ = backbone(new_x[1:2], new_c[1:2], mixed.memory, mixed.steps)
        torch.testing.assert_close(y, own, rtol=1e-4, atol=1e-4)


def test_memories_of_different_models_do_not_mix() -> None:
    def state(*shape: int) -> WorldState:
        return WorldState({"a": torch.zeros(1, *shape)}, torch.zeros(1).long(), torch.zeros(1, 1))

    assert WorldState.cat([state(2, 3), state(5, 3)]).memory["a"].shape == (2, 5, 3)
    for other in (state(5, 4), state(2, 3, 1)):
        with pytest.raises(ValueError, match="are not of one model"):
            WorldState.cat([state(2, 3), other])


@pytest.mark.parametrize("past", [0, 3])
@torch.no_grad()
def test_frame_attention_is_masked_softmax(past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldsim.frame_attention.QUERY_CHUNK", 2)
    g = torch.Generator().manual_seed(0)
    b, t, n, m, e = 2, 5, 3, 2, 4
    steps = torch.tensor([past, past // 2])
    q = torch.randn(b, 1, t, n, e, generator=g)
    fine = [torch.randn(b, 1, past + t, n, e, generator=g) for _ in range(2)]
    coarse = [torch.randn(b, 1, past + t, m, e, generator=g) for _ in range(2)]
    sources = [KeySource(*fine, -past, 0, 1)]
    for part, first in ((slice(past), -past), (slice(past, None), 0)):
        sources.append(KeySource(*(a[:, :, part] for a in coarse), first, 2))
    y = frame_attention(q, sources, steps)
    for env in range(b):
        for i in range(t):
            keys, values = [], []
            for (k, v), lags in ((fine, range(2)), (coarse, range(2, 100))):
                for lag in lags:
                    j = past + i - lag
                    if j >= past - steps[env]:
                        keys.append(k[env, 0, j])
                        values.append(v[env, 0, j])
            scores = q[env, 0, i] @ torch.cat(keys).T / e**0.5
            expected = scores.softmax(-1) @ torch.cat(values)
            torch.testing.assert_close(y[env, 0, i], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_far_within_its_window_is_the_causal_transformer() -> None:
    causal = make("causal")
    far = make_backbone(FARConfig(**SMALL, window=20), GRID).eval()
    missing = far.load_state_dict(causal.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"coarse_in.weight", "coarse_in.bias"}
    x, c = inputs(2, 10)
    torch.testing.assert_close(run(far, x, c)[0], run(causal, x, c)[0], rtol=1e-4, atol=1e-5)


def make_model(name: str) -> WorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel(dataclasses.replace(tiny_config(), backbone=CONFIGS[name]))
        leave_nothing_at_zero(model)
    return model.eval()


@every_backbone
def test_segments_end_in_own_dreams(name: str) -> None:
    """Training can show any model what it would dream."""
    model = make_model(name).train()
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 6, 4, 8, generator=g)
    actions = torch.randint(NUM_ACTIONS, (2, 6), generator=g)
    drawn = draw_dream_noise(2, 2, model, g)
    drawn = drawn._replace(shown=torch.ones_like(drawn.shown))
    seen, _ = end_in_dreams(model, latents, actions, torch.zeros(2, 6, 3), torch.ones(2, 6), drawn)
    assert model.denoiser.backbone.training
    model.eval()
    state = model.observe_latents(model.initial_state(2), actions[:, :4], latents[:, :4])[0]
    for i in range(2):
        dream = model.imagine(state, actions[:, 4 + i], noise=drawn.noise[:, i])
        state = dream.state
        assert torch.equal(model.decode(seen[:, 4 + i]), dream.frame)


@every_backbone
def test_every_weight_learns(name: str) -> None:
    model = make_model(name).train()
    model.tokenizer.requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    signal, mask = sample_signal_levels(2, 8, model.config.diffusion, g)
    latents, noise = torch.randn(2, 2, 8, 4, 8, generator=g).unbind()
    actions = torch.randint(NUM_ACTIONS, (2, 8), generator=g)
    losses = model(
        latents,
        actions,
        torch.zeros(2, 8, 3),
        torch.zeros(2, 8),
        torch.zeros(2, 8, dtype=torch.bool),
        torch.zeros(2, 8),
        torch.ones(2, 8),
        noise,
        signal,
        mask,
    )
    sum(losses.values()).backward()
    idle = [
        k
        for k, p in model.denoiser.backbone.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert idle == []


@every_backbone
def test_checkpoints_keep_the_backbone(name: str, tmp_path: object) -> None:
    model = make_model(name)
    path = f"{tmp_path}/model"
    checkpoint.save(model, path)
    loaded = checkpoint.load(path, dtype=torch.float32)
    assert loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@every_backbone
def test_dreams_run_on_and_restart(name: str) -> None:
    """Dreams that start again and again: growing memories are cut back to what is needed."""
    model = make_model(name)
    contexts = tiny_contexts(n=3, length=6)
    env = DreamVectorEnv(2, world_model=model, contexts=contexts, horizon=3)
    env.reset(seed=0)
    sizes = []
    for _ in range(14):
        obs, *_ = env.step(env.action_space.sample())
        assert obs.shape == (2, 64, 64, 3)
        sizes.append(env.snapshot().state.nbytes)
    assert max(sizes) == sizes[2]  # longest just before the first reset
    snapshot = env.snapshot()
    actions = np.array([0, 1])
    one = env.step(actions)[0]
    env.restore(snapshot)
    assert np.array_equal(env.step(actions)[0], one)


def test_parameters_are_matched() -> None:
    grid = (4, 4)
    ours = BlockSSMConfig(d_model=128, num_layers=6, head_dim=32)
    target = count_backbone_parameters(ours, grid)
    assert target == count_parameters(make_backbone(ours, grid))
    size = {"d_model": 128, "head_dim": 32}
    for config in (
        BlockSSMConfig(**size, block_sizes=(4,), window=0),
        CausalConfig(**size),
        CausalConfig(**size, window=16),
        DFoTConfig(**size),
        FARConfig(**size),
        FrameSSMConfig(**size, d_frame=256),
    ):
        matched = match_parameters(config, target, grid)
        assert abs(count_backbone_parameters(matched, grid) / target - 1) <= 0.05
        assert dataclasses.replace(matched, d_model=128, num_layers=config.num_layers) == config
    unchanged = match_parameters(ours, target, grid)
    assert unchanged == ours


def test_defaults_are_of_one_size() -> None:
    grid = (4, 4)
    target = count_backbone_parameters(BlockSSMConfig(), grid)
    for config in (CausalConfig(), DFoTConfig(), FARConfig(), FrameSSMConfig()):
        assert abs(count_backbone_parameters(config, grid) / target - 1) <= 0.05, config.kind


def test_width_changes_only_where_depth_is_not_enough() -> None:
    grid = (2, 2)
    config = CausalConfig(d_model=64, head_dim=8, num_layers=1)
    one = count_backbone_parameters(config, grid)
    assert match_parameters(config, 3 * one, grid) == dataclasses.replace(config, num_layers=3)
    between = match_parameters(config, int(1.5 * one), grid)
    assert between.d_model != 64
    assert abs(count_backbone_parameters(between, grid) / (1.5 * one) - 1) <= 0.05
    with pytest.raises(ValueError, match="no causal backbone of width"):
        match_parameters(config, 10, grid)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BlockSSMConfig(block_sizes=(3,)), "block size 3"),
        (FARConfig(coarse_patch=3), "coarse_patch 3 does not divide the token grid"),
        (FARConfig(window=0), "window is 0"),
        (DFoTConfig(window=0), "window is 0"),
        (FrameSSMConfig(d_frame=30), "d_frame 30 is not a multiple of the 4 tokens"),
        (CausalConfig(d_model=100), "head_dim 64 does not divide d_model 100"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_backbone(config, GRID)
