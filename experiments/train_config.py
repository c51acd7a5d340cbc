"""Settings of world-model training, and named starting points for hardware and worlds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from worldsim.backbone import (
    BackboneConfig,
    BlockSSMConfig,
    CausalConfig,
    DFoTConfig,
    FARConfig,
    FrameSSMConfig,
)
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.occupancy_training import OccupancyTraining
from worldsim.odometry_training import OdometryTraining
from worldsim.own_dreams import OwnDreams
from worldsim.places_training import PlacesTraining
from worldsim.pose import PoseConfig
from worldsim.tokenizer import TokenizerConfig
from worldsim.training_config import DynamicsTraining, OptimizerConfig, TokenizerTraining


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Open-loop validation on held-out episodes while training."""

    every: int = 500
    """Steps between validations; 0 validates only at the end."""
    num_contexts: int = 8
    context: int = 128
    """Real frames observed first."""
    horizon: int = 32
    """Frames dreamed."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a world model on recorded episodes."""

    dataset: tuple[str, ...] = ()
    """Minari ids or paths of the training episodes."""
    validation_dataset: tuple[str, ...] = ()
    """Episodes never trained on; by default a tenth of the training episodes is set aside."""
    datasets_root: Path | None = None
    """Folder of all datasets; by default Minari's own."""
    image_key: str | None = None
    """Key of the images where observations are dicts with several."""
    output: Path = Path("runs/world_model")
    """Run directory: checkpoint, training state, TensorBoard logs."""
    init: str | None = None
    """World model (name or checkpoint) to continue from, keeping its tokenizer, sizes and noise."""
    tokenizer_of: str | None = None
    """World model (name or checkpoint) whose tokenizer is taken as it is; all else starts anew."""
    odometry: bool = False
    """Find where each frame is seen from, and tell the network that instead of the action: for long
    memory. Training episodes need poses (privileged infos); see `dynamics.longest-stretches`. With
    `init`, the odometry of that model is trained further."""
    grid: float = 0.0
    """With odometry, the side of the cells of the grid that the world's walls stand on, if they do:
    odometry then sees in every frame how the camera stands to it, and does not drift. 1 in Memory
    Mazes. With `init`, give the odometry of that model this too."""
    pose: PoseConfig = field(default_factory=lambda: PoseConfig(wavelength=32.0, octaves=6))
    """With odometry, how poses are told. Set the camera's field of view: 80 in Memory Mazes."""
    places: bool = False
    """With odometry, train a memory of places at the end: features then tell where the next reward
    is expected too. Where `init` has one and its dynamics or odometry are trained further, places
    are too. With `--init MODEL --dynamics.optimizer.steps 0` nothing else is trained."""
    occupancy: bool = False
    """With places, train a map of where one can walk: features then tell the next place on the way
    to the reward, or to what was not seen yet. It takes for walls what walks do not come to, so
    train it on walks that come to every cell (`collect.py --explorer.goals tour`)."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    backbone: BackboneConfig = field(default_factory=BlockSSMConfig)
    latent_patch: int = 1
    """Side of the square of latents that the network takes as one token; 2 is about four times
    cheaper."""
    diffusion: DiffusionForcingConfig = field(default_factory=DiffusionForcingConfig)
    num_denoising_steps: int | None = None
    """Network evaluations per dreamed frame; by default 1, or those of `init`."""
    dream_signal: float | None = None
    """Signal level at which dreamed frames are committed to memory; by default 0.9, or that of
    `init`."""
    reward_limit: float = 5.0
    """Largest reward that can be told, in symlog: 5 is 147, 7 is 1,096."""
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    odometry_training: OdometryTraining = field(default_factory=OdometryTraining)
    dynamics: DynamicsTraining = field(default_factory=DynamicsTraining)
    places_training: PlacesTraining = field(default_factory=PlacesTraining)
    occupancy_training: OccupancyTraining = field(default_factory=OccupancyTraining)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    save_every: int = 200
    """Steps between checkpoints."""
    compile: bool = False
    """Compile the layers (torch.compile): a minute or two per segment length, then faster."""
    precision: str = "auto"
    """Mixed precision: bf16, no, or auto (bf16 where the hardware is fast at it)."""
    device: str = "auto"
    """cpu, cuda or auto; which of several GPUs, CUDA_VISIBLE_DEVICES says."""


def presets() -> dict[str, tuple[str, TrainConfig]]:
    """Named starting points for hardware; every value can be overridden."""
    large = BlockSSMConfig(d_model=512, num_layers=10, window=10, head_dim=64, expand=2)
    gpu = TrainConfig(
        backbone=large,
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(steps=10_000, muon_learning_rate=0, weight_decay=0.0),
            batch_size=256,
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(steps=30_000),
            frames_per_step=8192,
            curriculum=((64, 0.3), (256, 0.4), (512, 0.3)),
        ),
        validation=ValidationConfig(every=2000, num_contexts=16, context=256, horizon=64),
        save_every=1000,
    )
    tiny = TrainConfig(
        tokenizer=TokenizerConfig(channels=(16, 32, 64), latent_channels=16),
        backbone=BlockSSMConfig(d_model=64, num_layers=2, head_dim=32, window=3, d_state=16),
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(steps=200, muon_learning_rate=0, weight_decay=0.0),
            batch_size=16,
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(steps=200), frames_per_step=128, curriculum=((32, 1.0),)
        ),
        validation=ValidationConfig(every=0, num_contexts=2, context=16, horizon=8),
    )
    # Rewards of MineRL's Obtain tasks reach 1,024; its episodes may be far shorter than 256 frames.
    # Four tokens a frame and few steps at high rates.
    minerl = TrainConfig(
        backbone=BlockSSMConfig(block_sizes=((1, 2), 2)),
        latent_patch=2,
        reward_limit=7.0,
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(
                steps=1500, muon_learning_rate=0, weight_decay=0.0, ema_decay=0.995
            )
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(
                steps=800, learning_rate=2e-3, muon_learning_rate=4e-3, ema_decay=0.99
            ),
            curriculum=((64, 0.7), (128, 0.3)),
        ),
        validation=ValidationConfig(every=400, context=64),
    )
    # Odometry, a memory of places, and single frames of an episode in any order first, of which
    # only memory tells anything; then ever longer stretches, and own dreams, so that dreams go
    # astray less. Four tokens a frame instead of sixteen, which buys four times the frames; every
    # second layer remembers rows, along which turning moves what is seen.
    memory_maze = TrainConfig(
        odometry=True,
        grid=1.0,
        places=True,
        occupancy=True,
        pose=PoseConfig(wavelength=32.0, octaves=6, field_of_view=80.0),
        backbone=BlockSSMConfig(block_sizes=((1, 2), 2), d_state=128),
        latent_patch=2,
        diffusion=DiffusionForcingConfig(
            clean_prefix_probability=0.0, level_power=4.0, min_context_signal=0.5
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(steps=3800, learning_rate=2e-3, muon_learning_rate=4e-3),
            curriculum=((128, 0.2), (256, 0.3), (256, 0.3), (512, 0.2)),
            longest_stretches=(1, 1, 256, 512),
            own_dreams=OwnDreams(share=0.5, begin=0.6),
            reward_weight=3.0,
        ),
        validation=ValidationConfig(every=1900),
    )
    memory_maze_gpu = dataclasses.replace(
        memory_maze,
        backbone=dataclasses.replace(large, block_sizes=((1, 4), 4), d_state=128),
        latent_patch=1,
        tokenizer_training=gpu.tokenizer_training,
        odometry_training=OdometryTraining(batch_size=256),
        dynamics=dataclasses.replace(
            memory_maze.dynamics,
            optimizer=OptimizerConfig(steps=20_000),
            frames_per_step=8192,
            curriculum=((128, 0.2), (256, 0.3), (512, 0.3), (1000, 0.2)),
            longest_stretches=(1, 1, 512, 1000),
        ),
        validation=gpu.validation,
        save_every=gpu.save_every,
    )
    named = {
        "memory-maze": ("Memory Maze with long memory on two CPU cores, two hours.", memory_maze),
        "memory-maze-gpu": ("The same on one GPU, larger, not yet run.", memory_maze_gpu),
        "minerl": ("MineRL on two CPU cores, an hour.", minerl),
        "cpu": ("Two CPU cores, an hour or two.", TrainConfig()),
        "gpu": ("One GPU, half an hour to hours.", gpu),
        "tiny": ("A minute, to see that everything runs.", tiny),
    }
    others: tuple[BackboneConfig, ...] = (
        CausalConfig(),
        DFoTConfig(),
        FARConfig(),
        FrameSSMConfig(),
    )
    for backbone in others:
        config = TrainConfig(backbone=backbone)
        if isinstance(backbone, DFoTConfig):  # it sees no more than its window
            curriculum = ((backbone.window, 1.0),)
            config = dataclasses.replace(config, dynamics=DynamicsTraining(curriculum=curriculum))
        title = f"Like cpu, with the backbone {backbone.kind} of the same size."
        named["cpu-" + backbone.kind.replace("_", "-")] = (title, config)
    return named
