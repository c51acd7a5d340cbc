"""How a tokenizer and a world model are trained: the settings of `worldsim.training`."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldsim.own_dreams import OwnDreams


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, with Muon for the matrices of the backbone; constant rate, then linear decay."""

    steps: int
    learning_rate: float = 1e-3
    muon_learning_rate: float = 2e-3
    """Rate of Muon (Jordan et al. 2024) on the backbone's matrices, scaled to match AdamW's
    update size; 0 uses AdamW for all."""
    weight_decay: float = 0.02
    warmup_steps: int = 100
    decay_share: float = 0.3
    """Share of the steps over which the rate falls linearly to zero at the end."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    """Decay of the running average of weights that is evaluated and shipped."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "muon_learning_rate", "warmup_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        falling = (self.steps - step) / max(self.decay_share * self.steps, 1)
        return max(min(1.0, rising, falling), 0.0)


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """How the tokenizer is trained."""

    optimizer: OptimizerConfig = OptimizerConfig(
        steps=4000, muon_learning_rate=0, weight_decay=0.0, ema_decay=0.995
    )
    batch_size: int = 48
    """Frames per step, over all processes."""
    max_frames: int = 100_000
    """Frames kept in memory to train on, evenly spaced over the dataset."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DynamicsTraining:
    """How the world model is trained on latents."""

    optimizer: OptimizerConfig = OptimizerConfig(steps=4000)
    frames_per_step: int = 512
    """Frames per step, over all processes, as nearly as whole segments allow; shorter ones make
    larger batches."""
    curriculum: tuple[tuple[int, float], ...] = ((64, 0.5), (128, 0.25), (256, 0.25))
    """Segment length and the share of steps trained at it, in order."""
    longest_stretches: tuple[int, ...] = ()
    """For models with poses, by stage of the curriculum: segments are stretches of an episode, of
    so many frames at most, put together in any order; 0 leaves them whole. After a cut no frame can
    be guessed from the one before it, so that only memory helps: without, recall is not learned on
    smooth walks in reasonable time."""
    own_dreams: OwnDreams = field(default_factory=OwnDreams)
    reward_weight: float = 1.0
    termination_weight: float = 0.1
    policy_weight: float = 0.1
    value_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.frames_per_step < 1:
            raise ValueError(f"frames_per_step must be at least 1, got {self.frames_per_step}")
        shares = [share for _, share in self.curriculum]
        if any(length < 1 for length, _ in self.curriculum) or any(s < 0 for s in shares):
            raise ValueError(
                "curriculum must be lengths of at least 1 and shares of at least 0, got "
                f"{self.curriculum}"
            )
        if not sum(shares) > 0:
            raise ValueError(f"curriculum must have a share above 0, got {self.curriculum}")

    @property
    def segment_lengths(self) -> list[int]:
        """Of all segments that are trained on, those that end in own dreams included."""
        own = self.own_dreams
        lengths = {length for length, _ in self.curriculum}
        return sorted(lengths | ({own.context + own.length} if own.share else set()))

    def segment_length(self, step: int) -> int:
        """Frames per segment at a step."""
        return self.curriculum[self._stage(step)][0]

    def longest_stretch(self, step: int) -> int:
        """Frames per stretch at most, at a step; 0 where segments are whole."""
        return self.longest_stretches[self._stage(step)] if self.longest_stretches else 0

    def _stage(self, step: int) -> int:
        total, reached = sum(share for _, share in self.curriculum), 0.0
        for stage, (_, share) in enumerate(self.curriculum):
            reached += share / total * self.optimizer.steps
            if step < reached:
                return stage
        return len(self.curriculum) - 1

    def batch_size(self, length: int) -> int:
        """Segments per step, over all processes, where they have so many frames."""
        return max(self.frames_per_step // length, 1)

    def frames_until(self, step: int) -> int:
        """Frames of whole segments that so many steps train on, over all processes; steps with own
        dreams count as the others."""
        lengths = (self.segment_length(i) for i in range(step))
        return sum(self.batch_size(length) * length for length in lengths)
