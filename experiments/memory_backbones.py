"""The models that the memory benchmark compares: names, configs, and how each family is trained.

All are sized to the parameters of `block_ssm` by depth (or width, where depth is not enough).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from worldsim.backbone import (
    BackboneConfig,
    BlockSSMConfig,
    CausalConfig,
    DFoTConfig,
    FARConfig,
    FrameSSMConfig,
    count_backbone_parameters,
    match_parameters,
)
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.layers import BlockSize
from worldsim.pose import PoseConfig
from worldsim.training_config import DynamicsTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneSizes:
    """Sizes that the compared models share."""

    d_model: int = 96
    num_layers: int = 6
    """Layers of `block_ssm`; the others get as many as match its parameters."""
    block_sizes: tuple[BlockSize, ...] = (1, 2)
    """Of `block_ssm`, by layer."""
    head_dim: int = 32
    d_state: int = 32
    chunk_size: int = 32
    """Tokens per chunk of the parallel scans; changes speed, never results."""
    window: int = 8
    """Frames that the local attention of `block_ssm` and `ssm_local` sees."""
    causal_window: int = 32
    """Frames that the limited causal transformer sees. The paper takes about half of training's;
    with fewer, more of a test lies beyond."""
    dfot_window: int = 25
    frame_mixing_conv: bool = False
    """How the convolution of `frame_ssm` begins; see `worldsim.ssm.SSMConfig`."""
    far_window: int = 16
    coarse_patch: BlockSize = 2


def _block_ssm(
    sizes: BackboneSizes,
    block_sizes: tuple[BlockSize, ...] | None = None,
    window: int | None = None,
) -> BlockSSMConfig:
    return BlockSSMConfig(
        d_model=sizes.d_model,
        num_layers=sizes.num_layers,
        block_sizes=sizes.block_sizes if block_sizes is None else block_sizes,
        window=sizes.window if window is None else window,
        head_dim=sizes.head_dim,
        d_state=sizes.d_state,
        chunk_size=sizes.chunk_size,
    )


def _causal(sizes: BackboneSizes, window: int) -> CausalConfig:
    return CausalConfig(d_model=sizes.d_model, head_dim=sizes.head_dim, window=window)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the comparison."""

    label: str
    config: Callable[[BackboneSizes, int], BackboneConfig]
    """From the sizes and the side of the token grid."""
    context: bool = True
    """Whether some frames of a training segment are context, (almost) without noise."""
    free_rotations: bool = True
    """Whether rotations by poses are as configured; else drawn, and shared by a scan's heads."""


BACKBONES: dict[str, Entry] = {
    "block_ssm": Entry(
        "block-wise SSM + local attention (ours)", lambda sizes, side: _block_ssm(sizes)
    ),
    "ssm": Entry("Mamba-2", lambda sizes, side: _block_ssm(sizes, (side,), 0)),
    "ssm_local": Entry("Mamba-2 + local attention", lambda sizes, side: _block_ssm(sizes, (side,))),
    "causal": Entry("causal transformer, full context", lambda sizes, side: _causal(sizes, 0)),
    "causal_window": Entry(
        "causal transformer, window", lambda sizes, side: _causal(sizes, sizes.causal_window)
    ),
    "dfot": Entry(
        "DFoT",
        lambda sizes, side: DFoTConfig(
            d_model=sizes.d_model, head_dim=sizes.head_dim, window=sizes.dfot_window
        ),
    ),
    "far": Entry(
        "FAR, long short-term context",
        lambda sizes, side: FARConfig(
            d_model=sizes.d_model,
            head_dim=sizes.head_dim,
            window=sizes.far_window,
            coarse_patch=sizes.coarse_patch,
        ),
    ),
    "frame_ssm": Entry(
        "SSM over frame vectors",
        lambda sizes, side: FrameSSMConfig(
            d_model=sizes.d_model,
            d_frame=min(2 * sizes.d_model, 128),  # wider, its tokens would have to be thin
            head_dim=sizes.head_dim,
            d_state=sizes.d_state,
            mixing_conv=sizes.frame_mixing_conv,
            chunk_size=sizes.chunk_size,
        ),
    ),
}
ABLATIONS: dict[str, Entry] = {
    "block_1": Entry("ours, block size 1", lambda sizes, side: _block_ssm(sizes, (1,))),
    "no_clean_context": Entry(
        "ours, noise on every frame", lambda sizes, side: _block_ssm(sizes), context=False
    ),
    "window_2": Entry("ours, window 2", lambda sizes, side: _block_ssm(sizes, None, 2)),
    "window_1": Entry(
        "ours, attention within the frame alone", lambda sizes, side: _block_ssm(sizes, None, 1)
    ),
    "no_attention": Entry("ours, no attention", lambda sizes, side: _block_ssm(sizes, None, 0)),
    "fixed_rotations": Entry(
        "ours, rotations drawn and shared",
        lambda sizes, side: _block_ssm(sizes),
        free_rotations=False,
    ),
}
ALL = BACKBONES | ABLATIONS


@functools.cache
def matched_config(name: str, sizes: BackboneSizes, grid: tuple[int, int]) -> BackboneConfig:
    """The config of a model, matched in parameters to `block_ssm`.

    Raises:
        ValueError: no such model, or no match within 5 %.
    """
    if name not in ALL:
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(ALL)}")
    target = count_backbone_parameters(_block_ssm(sizes), grid)
    return match_parameters(ALL[name].config(sizes, min(grid)), target, grid)


def diffusion_for(name: str, common: DiffusionForcingConfig) -> DiffusionForcingConfig:
    """How noise is laid over a model's training segments: as for all, or for the ablation of it."""
    if ALL[name].context:
        return common
    return dataclasses.replace(common, clean_prefix_probability=0.0, context_probability=0.0)


def pose_for(name: str, common: PoseConfig | None) -> PoseConfig | None:
    """How a model that is told poses looks up by them: as all, or as the ablation of it."""
    if common is None or ALL[name].free_rotations:
        return common
    return dataclasses.replace(common, per_head=False, learned=False)


def training_for(
    config: BackboneConfig, training: DynamicsTraining, seed: int, rate: float
) -> DynamicsTraining:
    """Training of a model: the same steps and frames for all.

    Args:
        config: the backbone; DFoT trains on segments of one window, which is all that it sees.
        training: what is common.
        seed: decides initial weights and batches.
        rate: factor on the learning rates, chosen for the family by the sweep.
    """
    optimizer = dataclasses.replace(
        training.optimizer,
        seed=seed,
        learning_rate=rate * training.optimizer.learning_rate,
        muon_learning_rate=rate * training.optimizer.muon_learning_rate,
    )
    curriculum = training.curriculum
    if isinstance(config, DFoTConfig):
        curriculum = tuple((min(length, config.window), share) for length, share in curriculum)
    return dataclasses.replace(training, optimizer=optimizer, curriculum=curriculum)
