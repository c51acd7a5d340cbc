"""What a world model is made of: its sizes and how it dreams. Saved as JSON with the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldsim.backbone import BackboneConfig, BlockSSMConfig
from worldsim.diffusion import DiffusionForcingConfig
from worldsim.odometry import OdometryConfig
from worldsim.places import PlacesConfig
from worldsim.pose import PoseConfig
from worldsim.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """A world model; this and its weights are a checkpoint."""

    num_actions: int
    """Discrete actions of the environment; one more token stands for "no action"."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    backbone: BackboneConfig = field(default_factory=BlockSSMConfig)
    diffusion: DiffusionForcingConfig = field(default_factory=DiffusionForcingConfig)
    image_key: str | None = None
    """Key of its frames in recorded observations that are dicts with several images."""
    pose: PoseConfig | None = None
    """Where set, the model is told from where each frame is seen instead of the action that led
    there, as in Po et al. 2025: wherever actions are asked for it takes poses, float32 (..., 3)."""
    odometry: OdometryConfig | None = None
    """Where set too, the model is told actions again and finds the poses itself, relative to where
    its memory began; true poses are needed in training only."""
    places: PlacesConfig | None = None
    """Where set too, features end in where to go, by a memory of places, and in the pose; with a
    map, where to go is the next place on a way, and what the way leads to comes last."""
    latent_patch: int = 1
    """Side of the square of latents that the network takes as one token: 2 makes it about four
    times cheaper, and the memory smaller."""
    num_denoising_steps: int = 1
    """Network evaluations per dreamed frame, before the one that commits it."""
    dream_signal: float = 0.9
    """Signal level at which a dreamed frame is committed: a little noise hides its flaws."""
    reward_bins: int = 41
    """Bins of the distributions of reward and value, evenly spaced in symlog."""
    reward_limit: float = 5.0
    """Outermost bins in symlog, -limit and limit: 5 is a reward of 147, 7 one of 1,096."""
    gamma: float = 0.98
    """Discount of the returns that the value head predicts."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return self.tokenizer.frame_shape

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that the network sees of a frame."""
        h, w = self.tokenizer.grid
        return h // self.latent_patch, w // self.latent_patch

    @property
    def draws_map(self) -> bool:
        """Whether the model draws a map, on which ways are found."""
        return self.places is not None and self.places.occupancy is not None

    @property
    def num_features(self) -> int:
        """Of the read-out of a frame, and of places and pose where the model has them."""
        return self.backbone.d_model + (self.places.num_features if self.places is not None else 0)
