"""Settings of the memory benchmark, and named starting points for tasks and hardware."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.memory_backbones import BACKBONES, BackboneSizes
from experiments.memory_corridor import CorridorTask
from experiments.memory_costs import CostConfig
from experiments.memory_mazes import MazeTask
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.pose import PoseConfig
from worldsim.tokenizer import TokenizerConfig
from worldsim.training_config import DynamicsTraining, OptimizerConfig, TokenizerTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """Where the tokenizer came from."""

    model: str | None = None
    """None is the benchmark's own training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """How trained models are judged."""

    dream_signals: tuple[float, ...] = ()
    """See `BenchmarkConfig`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Compare memories on one task."""

    task: Literal["corridor", "memory-maze"] = "corridor"
    backbones: tuple[str, ...] = tuple(BACKBONES)
    """Models to compare, ablations among them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """None: nothing is trained, only costs are measured."""
    corridor: CorridorTask = dataclasses.field(default_factory=CorridorTask)
    maze: MazeTask = dataclasses.field(default_factory=MazeTask)
    pose: PoseConfig = dataclasses.field(
        default_factory=lambda: PoseConfig(
            field_of_view=80.0, lengths=(0.7, 1.0), max_harmonic=5, per_head=True, learned=True
        )
    )
    """How models that are told poses look memories up by them."""
    sizes: BackboneSizes = dataclasses.field(default_factory=BackboneSizes)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    tokenizer_of: str | None = None
    """Shipped name or checkpoint of the model whose tokenizer all models share, instead of
    one that is trained as said next."""
    tokenizer_training: TokenizerTraining = dataclasses.field(default_factory=TokenizerTraining)
    dynamics: DynamicsTraining = dataclasses.field(default_factory=DynamicsTraining)
    diffusion: DiffusionForcingConfig = dataclasses.field(default_factory=DiffusionForcingConfig)
    """How noise is laid over training segments."""
    num_denoising_steps: int = 4
    """Network evaluations per dreamed frame."""
    dream_signal: float = 0.9
    """Signal level at which dreamed frames are committed to memory, where `dream_signals` names
    none; presets name some."""
    dream_signals: tuple[float, ...] = ()
    """Levels of which each trained model gets the one whose dreams are best, by PSNR, on walks of
    neither training nor test; one is for all, and with none it is the one above, as in training."""
    sweep: tuple[float, ...] = ()
    """Factors on the learning rates to choose from for each family, by validation loss."""
    sweep_steps: int = 150
    measure_costs: bool = True
    """Measure time and memory too, once per model, after all runs."""
    costs: CostConfig = dataclasses.field(default_factory=CostConfig)
    output: Path = Path("runs/memory/corridor/results")
    """Results: one JSON per run, costs, table, plots."""
    work: Path = Path("runs/memory/corridor")
    """Checkpoints and whatever else can be made again."""
    num_processes: int = 1
    """Models trained and judged side by side, each in a process of its own with its share of the
    cores."""
    save_every: int = 200
    """Steps between checkpoints."""
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ValueError(f"num_processes must be at least 1, got {self.num_processes}")


def presets() -> dict[str, tuple[str, BenchmarkConfig]]:
    """Starting points; every value can be overridden."""
    # A small ring, few layers, fast rates, much pure noise, and segments in which most frames show
    # what was seen before: with these, recall is learned within the steps given
    # (results/memory/corridor). Windows are shorter than what is asked for.
    corridor = BenchmarkConfig(
        sizes=BackboneSizes(
            d_model=64,
            num_layers=3,
            head_dim=16,
            block_sizes=((1, 2),),
            window=4,
            causal_window=32,
            frame_mixing_conv=True,  # recalls far more here than without
        ),
        corridor=CorridorTask(num_cells=8, training_episodes=8000),
        tokenizer=TokenizerConfig(
            frame_shape=(32, 32, 3), patch_size=8, channels=(64, 128), latent_channels=16
        ),
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(
                steps=1500, muon_learning_rate=0, weight_decay=0.0, ema_decay=0.99
            ),
            batch_size=64,
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(
                steps=1000, learning_rate=5e-3, muon_learning_rate=1e-2, ema_decay=0.99
            ),
            frames_per_step=1024,
            curriculum=((64, 1.0),),
        ),
        diffusion=DiffusionForcingConfig(clean_prefix_probability=0.0, level_power=4.0),
        dream_signals=(0.1, 0.9),
        sweep_steps=500,
        num_processes=2,
    )
    cpu = BenchmarkConfig(
        task="memory-maze",
        seeds=(0,),
        sizes=BackboneSizes(
            d_model=96,
            num_layers=7,
            block_sizes=((1, 2),),
            d_state=128,
            causal_window=64,
            coarse_patch=(2, 1),
        ),
        tokenizer=TokenizerConfig(patch_size=8, latent_channels=128),  # 2 x 2 tokens a frame
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(
                steps=2000, muon_learning_rate=0, weight_decay=0.0, ema_decay=0.99
            )
        ),
        # First single frames in any order, of which only memory tells anything, so that recall is
        # learned at once; then ever longer stretches, and segments as long as the test.
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(
                steps=1000, learning_rate=3e-3, muon_learning_rate=6e-3, ema_decay=0.99
            ),
            frames_per_step=512,
            curriculum=((64, 0.6), (128, 0.2), (256, 0.2)),
            longest_stretches=(1, 128, 256),
        ),
        diffusion=DiffusionForcingConfig(
            clean_prefix_probability=0.0, level_power=4.0, min_context_signal=0.5
        ),
        num_denoising_steps=1,
        dream_signal=0.5,
        dream_signals=(0.1,),  # best for nearly all (results/memory/maze-levels)
        maze=MazeTask(
            env="memory-maze-7x7",
            training_episodes=300,
            test_episodes=12,
            test_seed=30_000_000,
            context=128,
            horizon=128,
        ),
        num_processes=2,
        output=Path("runs/memory/maze-cpu/results"),
        work=Path("runs/memory/maze-cpu"),
    )
    # The models of `cpu` with 16 tokens a frame, of which blocks can be rows.
    gpu = dataclasses.replace(
        cpu,
        seeds=(0, 1, 2),
        sizes=dataclasses.replace(
            cpu.sizes,
            block_sizes=((1, 4),),
            causal_window=192,
            coarse_patch=(4, 1),
            chunk_size=128,
        ),
        tokenizer=TokenizerConfig(),  # 4 x 4 tokens a frame, as the one that is taken
        tokenizer_of="memory-maze-9x9",
        dynamics=dataclasses.replace(
            cpu.dynamics,
            frames_per_step=1600,
            curriculum=((64, 0.5), (256, 0.25), (800, 0.25)),
            longest_stretches=(1, 256, 800),
        ),
        sweep=(0.5, 1.0, 2.0),
        save_every=250,
        maze=MazeTask(
            env="memory-maze-9x9",
            training_episodes=240,
            test_seed=30_000_000,
            context=400,
            horizon=400,
            batch_size=16,
            num_workers=14,
        ),
        costs=CostConfig(frames_per_step=4096),
        output=Path("runs/memory/maze-gpu/results"),
        work=Path("runs/memory/maze-gpu"),
    )
    tiny = dataclasses.replace(
        corridor,
        seeds=(0,),
        num_processes=1,
        dream_signals=(),
        sizes=BackboneSizes(
            d_model=32,
            num_layers=2,
            head_dim=8,
            d_state=8,
            window=3,
            causal_window=4,
            dfot_window=5,
            far_window=4,
        ),
        corridor=CorridorTask(
            num_cells=6,
            training_episodes=8,
            episode_length=32,
            test_episodes=2,
            warm_up=4,
            dreams=2,
            context=16,
            horizon=8,
        ),
        tokenizer=TokenizerConfig(
            frame_shape=(32, 32, 3), patch_size=16, channels=(16,), latent_channels=8
        ),
        tokenizer_training=TokenizerTraining(
            optimizer=OptimizerConfig(steps=2, muon_learning_rate=0), batch_size=8
        ),
        dynamics=DynamicsTraining(
            optimizer=OptimizerConfig(steps=3), frames_per_step=32, curriculum=((16, 1.0),)
        ),
        costs=CostConfig(training_lengths=(8, 16), frames_per_step=16, contexts=(4, 8), repeats=1),
        sweep_steps=2,
        save_every=2,
        output=Path("runs/memory/tiny/results"),
        work=Path("runs/memory/tiny"),
    )
    return {
        "corridor": ("All models, three seeds, under 90 minutes on two cores.", corridor),
        "cpu": ("A small maze, one seed, under two hours on two cores.", cpu),
        "gpu": ("9x9 mazes, 400 + 400 frames, three seeds, on one large GPU.", gpu),
        "tiny": ("Seconds, to see that everything runs.", tiny),
    }
