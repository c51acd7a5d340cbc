"""A memory of places for acting: where the next reward will be had, seen from the camera.

What a frame shows now says little of where to go: a target that was seen and left behind is in no
pixel. So every frame may write places that it sees into slots, and looks up the place that matters
now. Both are learned: each write is a place relative to the camera, and how far each slot moves
towards it (slots are gated averages, as in minimal recurrent networks, Feng et al. 2024, arXiv
2410.01201); a lookup mixes slots. Places are kept where odometry says they are and read as seen
from the camera, which makes the read-out the same wherever in the world it happens (as in invariant
point attention, Jumper et al. 2021). The memory has constant size.

What it learns from is recorded: the place at which the next reward came (`next_reward_places`). A
policy head learns to walk where it is told: recorded walks are told the place that they did come to
some steps later, in place of where the next reward is expected (goal-conditioned supervised
learning, Ghosh et al. 2019, arXiv 1912.06088; hindsight, Andrychowicz et al. 2017, arXiv
1707.01495). On new frames it then walks to where it expects a reward. With a map
(`worldsim.occupancy`), it is told the next place on the way there, or, where it expects none, on
the way to what it has not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldsim.heads import make_head, mean_where, policy_loss
from worldsim.layers import Memory, in_float32
from worldsim.occupancy import Occupancy
from worldsim.occupancy_config import OccupancyConfig
from worldsim.pose import placed_at, seen_from

SLOTS = "places.slots"
"""Name in a world model's memory: (b, slots, 4), each x, y and time, times how full the slot is,
and how full it is, from 0 to 1."""
NUM_PLACE_FEATURES = 10
"""Numbers that tell policies of a place; see `place_features`."""
NUM_POSE_FEATURES = 4
"""Numbers that tell them where they are; see `pose_features_of`."""
UNIT = 8.0
"""Of positions in features: some cells."""
AGE_UNIT = 100.0
"""Of time in slots: some frames."""


@dataclass(frozen=True, kw_only=True)
class PlacesConfig:
    """Size of the memory of places."""

    slots: int = 16
    writes: int = 2
    """Places that a frame can write."""
    width: int = 256
    """Of the network that reads frames."""
    reach: float = 3.0
    """How far away places are seen, about, in the unit of positions."""
    occupancy: OccupancyConfig | None = None
    """Where set, the map on which ways are found; else policies are told places themselves."""

    def __post_init__(self) -> None:
        for name in ("slots", "writes", "width", "reach"):
            if not getattr(self, name) > 0:
                raise ValueError(f"places.{name} must be above 0, got {getattr(self, name)}")

    @property
    def num_features(self) -> int:
        """Of where to go, of the pose, and, with a map, of the place that the way leads to."""
        more = 0 if self.occupancy is None else NUM_PLACE_FEATURES
        return NUM_PLACE_FEATURES + NUM_POSE_FEATURES + more


class Outlook(NamedTuple):
    """Where the next reward is expected: one of two guesses."""

    places: Tensor  # (b, t, 2, 2) ahead and to the left: remembered, and seen in this frame
    spread: Tensor  # (b, t, 2) log of each one's scale, in the unit of positions
    log_share: Tensor  # (b, t, 2) log probability that it is the right one

    def log_likelihood(self, place: Tensor) -> Tensor:
        """Of a place (b, t, 2) under the mixture of two-dimensional Cauchy densities: (b, t).

        Their tails are heavy: where odometry has lost its way, places may be off by any distance.
        """
        squared = (self.places - place[..., None, :]).square().sum(-1)
        tail = 1.5 * (1 + squared * (-2 * self.spread).exp()).log()
        density = -tail - 2 * self.spread - math.log(2 * math.pi)
        return torch.logsumexp(self.log_share + density, dim=-1)

    def best(self) -> tuple[Tensor, Tensor]:
        """The likelier guess (b, t, 2), and how certain it is: (b, t), from 0 to 1.

        Certain is what is likely right to much less than one unit of positions.
        """
        chosen = self.log_share.argmax(-1, keepdim=True)
        place = self.places.gather(-2, chosen[..., None].expand(*chosen.shape, 2)).squeeze(-2)
        share = self.log_share.gather(-1, chosen).exp()
        certainty = share * torch.sigmoid(-4 * self.spread.gather(-1, chosen))
        return place, certainty.squeeze(-1)


def place_features(place: Tensor, certainty: Tensor) -> Tensor:
    """What policies are told of a place: direction and distance on several scales.

    Args:
        place: (..., 2) ahead and to the left, in the unit of positions.
        certainty: (...) from 0, where nothing is told, to 1.

    Returns:
        (..., NUM_PLACE_FEATURES) float32.
    """
    distance = place.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    direction = place / distance
    parts = [
        *(direction, direction * distance.clamp(max=1), place / UNIT, distance.log1p()),
        *((-distance).exp(), (-distance / 3).exp(), torch.ones_like(distance)),
    ]
    return torch.cat(parts, dim=-1) * certainty[..., None]


def place_in(features: Tensor, config: PlacesConfig) -> tuple[Tensor, Tensor]:
    """The place (..., 2) where features (..., d) expect a reward, and how certain it is (...)."""
    told = features[..., -config.num_features :]
    last = config.occupancy is not None
    told = told[..., -NUM_PLACE_FEATURES:] if last else told[..., :NUM_PLACE_FEATURES]
    return _place_of(told), told[..., -1]


def way_in(features: Tensor, config: PlacesConfig) -> Tensor:
    """The place (..., 2) that features (..., d) tell to walk to: the next on the way with a map."""
    return _place_of(features[..., -config.num_features :][..., :NUM_PLACE_FEATURES])


def _place_of(told: Tensor) -> Tensor:
    """The place (..., 2) that `place_features` (..., NUM_PLACE_FEATURES) are of."""
    return UNIT * told[..., 4:6] / told[..., -1:].clamp(min=1e-6)


def pose_features_of(poses: Tensor) -> Tensor:
    """Poses (..., 3) as features (..., NUM_POSE_FEATURES): position, and heading as a direction."""
    heading = poses[..., 2:]
    return torch.cat([poses[..., :2] / UNIT, heading.cos(), heading.sin()], dim=-1)


def next_reward_places(rewards: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Where the next reward of an episode came, for each of its frames.

    Args:
        rewards: (t,) of arriving at each frame; those above 0 count.
        poses: (t, 3) true ones.

    Returns:
        Places (t, 2) as seen from each frame's pose, and which frames a reward followed: (t,) bool.
    """
    times = torch.arange(len(rewards), device=rewards.device)
    coming = torch.where(rewards > 0, times, len(rewards))
    # Strictly later: what led to this frame is past.
    following = torch.cat([coming[1:], coming.new_full((1,), len(rewards))])
    following = following.flip(0).cummin(0).values.flip(0)
    known = following < len(rewards)
    places = poses[following.clamp(max=len(rewards) - 1), :2]
    return seen_from(poses, places), known


class Places(nn.Module):
    """Writes and looks up places.

    Args:
        num_actions: actions, "no action" not counted.
        latent_size: numbers in the latents of a frame.
        d_model: width of the frame's read-out.
        config: sizes.

    Attributes:
        walk: policy head, features of the model to logits: the recorded behaviour, told a place.
    """

    def __init__(
        self, num_actions: int, latent_size: int, d_model: int, config: PlacesConfig
    ) -> None:
        super().__init__()
        self.config = config
        width, writes, slots = config.width, config.writes, config.slots
        self.read = nn.Sequential(
            nn.Linear(latent_size + d_model, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.address = nn.Linear(width, writes * slots)
        self.gate = nn.Linear(width, writes)
        nn.init.constant_(self.gate.bias, -2.0)  # most frames show nothing to remember
        self.place = nn.Linear(width, writes * 2)
        self.query = nn.Linear(width, slots)
        with torch.no_grad():  # frames that differ begin with slots that differ
            self.address.weight.mul_(5)
            self.query.weight.mul_(5)
        self.seen = nn.Linear(width, 3)
        self.trust = nn.Sequential(nn.Linear(width + 5, 64), nn.SiLU(), nn.Linear(64, 2))
        self.walk = make_head(d_model + NUM_PLACE_FEATURES + NUM_POSE_FEATURES, num_actions)
        self.occupancy = None
        if config.occupancy is not None:
            self.occupancy = Occupancy(latent_size, d_model, config.occupancy)

    def initial_memory(self, batch_size: int) -> Memory:
        """Empty slots, and a map of nothing."""
        device = self.gate.weight.device
        memory = {SLOTS: torch.zeros(batch_size, self.config.slots, 4, device=device)}
        if self.occupancy is not None:
            memory |= self.occupancy.initial_memory(batch_size)
        return memory

    def forward(
        self,
        memory: Memory,
        latents: Tensor,
        read_outs: Tensor,
        poses: Tensor,
        stands: Tensor,
        steps: Tensor,
        dreamed: bool = False,
    ) -> tuple[Tensor, Memory]:
        """Follow frames.

        Args:
            memory: as from `initial_memory` or a call before.
            latents: (b, t, n, c). read_outs: (b, t, d) of the frames.
            poses: (b, t, 3). stands: (b, t, 3), the same relative to the grid of the world.
            steps: (b,) frames that came before.
            dreamed: whether frames are dreamed, which do not change what is known of the map.

        Returns:
            Features (b, t, config.num_features) and the memory afterwards.
        """
        with torch.autocast(latents.device.type, enabled=False):
            x = self.look(latents.float(), read_outs.float())
            time = self.times(steps, x.shape[1])
            slots = self.write(memory[SLOTS], x, poses, time)
            found = self.look_up(slots, self.query(x).softmax(-1), poses, time)
            place, certainty = self.outlook(x, *found).best()
            features = [place_features(place, certainty), pose_features_of(poses)]
            after = {SLOTS: slots[:, -1].clone()}
            if self.occupancy is not None:
                way, drawn = self.occupancy(
                    memory, latents, read_outs, stands, place, certainty, steps, dreamed
                )
                after |= drawn
                # The way comes first, where the policy head is told where to go.
                features = [place_features(way, torch.ones_like(certainty)), *features[::-1]]
        return torch.cat(features, dim=-1), after

    def look(self, latents: Tensor, read_outs: Tensor) -> Tensor:
        """What frames show: (b, t, width)."""
        return self.read(torch.cat([latents.flatten(2), read_outs], dim=-1))

    def times(self, steps: Tensor, length: int) -> Tensor:
        """Time of each frame, (b, t), in `AGE_UNIT`."""
        return (steps[:, None] + torch.arange(length, device=steps.device)) / AGE_UNIT

    def write(self, slots: Tensor, x: Tensor, poses: Tensor, time: Tensor) -> Tensor:
        """Slots after each frame: (b, slots, 4) and frames (b, t, width) to (b, t, slots, 4)."""
        c = self.config
        address = rearrange(self.address(x), "b t (w s) -> b t w s", w=c.writes).softmax(-1)
        weight = self.gate(x).sigmoid()[..., None] * address
        seen = c.reach * rearrange(self.place(x), "b t (w i) -> b t w i", w=c.writes)
        places = placed_at(poses[:, :, None], seen)
        when = time[:, :, None, None].expand_as(places[..., :1])
        written = torch.cat([places, when, torch.ones_like(when)], dim=-1)
        # One write after the other: s <- (1 - weight) s + weight written.
        keep, add = torch.ones_like(weight[:, :, 0]), torch.zeros(1, device=x.device)
        for w, value in zip(weight.unbind(2), written.unbind(2), strict=True):
            keep, add = keep * (1 - w), add * (1 - w[..., None]) + w[..., None] * value[:, :, None]
        after = []
        for k, a in zip(keep.unbind(1), add.unbind(1), strict=True):
            slots = torch.addcmul(a, k[..., None], slots)
            after.append(slots)
        return torch.stack(after, dim=1)

    def look_up(
        self, slots: Tensor, query: Tensor, poses: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What slots (b, t, slots, 4) hold for queries (b, t, slots), which sum to 1.

        Returns:
            The place as seen from the poses (b, t, 2), its age (b, t) and how full the slots are.
        """
        mixed = (query[..., None] * slots).sum(-2)
        full = mixed[..., 3]
        place, written = (mixed[..., :3] / (full[..., None] + 1e-3)).split([2, 1], dim=-1)
        return seen_from(poses, place), time - written.squeeze(-1), full

    def outlook(self, x: Tensor, place: Tensor, age: Tensor, full: Tensor) -> Outlook:
        """Where the next reward will be, from what frames show and what `look_up` found."""
        found = torch.stack([*place.unbind(-1), place.norm(dim=-1), age, full], dim=-1)
        trust, spread = self.trust(torch.cat([x, found], dim=-1)).unbind(-1)
        ahead, left, seen_spread = self.seen(x).unbind(-1)
        seen = self.config.reach * torch.stack([ahead, left], dim=-1)
        share = torch.stack([trust + (full + 1e-4).log(), torch.zeros_like(full)], dim=-1)
        return Outlook(
            torch.stack([place, seen], dim=-2),
            torch.stack([spread, seen_spread], dim=-1).clamp(-3.0, 2.0),
            F.log_softmax(share, dim=-1),
        )

    @in_float32
    def loss(
        self,
        latents: Tensor,
        read_outs: Tensor,
        poses: Tensor,
        places: Tensor,
        known: Tensor,
        others: Tensor,
        true_poses: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Of episodes from their beginning.

        Besides what each frame itself looks up, its memory is asked what another frame of the
        episode would: where the reward that followed that one would be from here.

        Args:
            latents, read_outs: as for `forward`. poses: (b, t, 3) by odometry.
            places, known: (b, t, 2) and (b, t), from `next_reward_places`.
            others: (b, t) int64, for each frame another one.
            true_poses: (b, t, 3).

        Returns:
            The negative log likelihood of the places, and that of the asked ones; scalars.
        """
        x = self.look(latents, read_outs)
        time = self.times(torch.zeros(len(x), device=x.device), x.shape[1])
        slots = self.write(self.initial_memory(len(x))[SLOTS], x, poses, time)
        query = self.query(x).softmax(-1)
        outlook = self.outlook(x, *self.look_up(slots, query, poses, time))
        own = mean_where(-outlook.log_likelihood(places), known)

        rows = torch.arange(len(x), device=x.device)[:, None]
        asked = placed_at(true_poses, places)[rows, others]
        found, _, full = self.look_up(slots, query[rows, others], poses, time)
        full = full.clamp(1e-4, 1 - 1e-4)
        nothing = torch.zeros_like(found)
        guesses = Outlook(
            torch.stack([found, nothing], dim=-2),
            torch.stack([torch.zeros_like(full), torch.full_like(full, math.log(2.0))], dim=-1),
            torch.stack([full.log(), (1 - full).log()], dim=-1),
        )
        likelihood = guesses.log_likelihood(seen_from(true_poses, asked))
        return own, mean_where(-likelihood, known[rows, others])

    @in_float32
    def walk_loss(
        self, read_outs: Tensor, poses: Tensor, actions: Tensor, ahead: Tensor, told: Tensor
    ) -> Tensor:
        """Of predicting recorded actions, told the place that was come to later.

        The straighter and quicker a walk went there, the more its actions count.

        Args:
            read_outs, poses: as for `loss`.
            actions: (b, t) int64 that led to the frames; "no action" is `num_actions`.
            ahead: (b, t) int64 steps to the place that is told; cut where the episode ends.
            told: (b, t) bool, false where nothing is told.
        """
        now = torch.arange(ahead.shape[1], device=ahead.device)
        later = (now + ahead).clamp(max=len(now) - 1)
        come_to = poses[..., :2].gather(1, later[..., None].expand(*later.shape, 2))
        place = seen_from(poses, come_to)
        features = [read_outs, place_features(place, told.float()), pose_features_of(poses)]
        speed = place.norm(dim=-1) / (later - now).clamp(min=1)
        return policy_loss(self.walk(torch.cat(features, dim=-1)), actions, speed.square())
