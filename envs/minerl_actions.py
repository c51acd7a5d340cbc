"""Discrete action sets for MineRL, and the way from human recordings back to them.

MineRL's native action is a dict: binary keys, a camera turn in degrees (pitch, yaw), and items to
place, craft, equip or smelt. A table names a few of its combinations:

    baselines   7: attack, forward, forward+jump, camera +-10 degrees in four directions (the action
                shaping of the MineRL baselines)
    dreamerv3   12: the movement part of DreamerV3's Minecraft actions, camera +-15 degrees; attack
                is held for 30 ticks and jump for 10 once pressed, pitch stays within +-60 degrees
    combined    30: {stay, forward, forward+jump} x {no turn, 4 turns of 15 degrees} x {attack or
                not}: loses less of what people do at the same time

Keys that a task does not have (`place` in Treechop) do nothing there, so an index means the same in
every task.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KEYS = ("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use")
ITEM_VERBS = ("place", "craft", "equip", "nearbyCraft", "nearbySmelt")
KEY_WEIGHTS = {"attack": 2.0, "sneak": 0.5, "sprint": 0.25}
CAMERA_WEIGHT = 2.0
ITEM_WEIGHT = 3.0

Action = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionTable:
    """A discrete action set.

    Attributes:
        name: What it is called.
        actions: Name and content of every action; keys left out are not pressed.
        sticky_attack: Ticks for which attack stays pressed; 0 is as long as asked.
        sticky_jump: The same for jump, which then also goes forward.
        pitch_limit: Lowest and highest pitch in degrees; turns beyond do nothing.
    """

    name: str
    actions: tuple[tuple[str, Action], ...]
    sticky_attack: int = 0
    sticky_jump: int = 0
    pitch_limit: tuple[float, float] | None = (-60.0, 60.0)

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names in the order of the indices."""
        return tuple(name for name, _ in self.actions)

    @property
    def camera_step(self) -> float:
        """The largest turn of a single action in degrees."""
        turns = [abs(angle) for _, action in self.actions for angle in action.get("camera", (0, 0))]
        return float(max(turns, default=0)) or 1.0

    def nearest(self, actions: Sequence[Action]) -> tuple[np.ndarray, np.ndarray]:
        """Find the entry that is closest to each native action.

        The distance adds, over the keys, 1 for each that differs (attack 2, sneak 0.5, sprint
        0.25); 2 for a turn of one camera step that is missing or too much, in proportion, both
        axes added, where turns beyond one step count as one step; 3 if an item is placed, crafted
        or equipped and the entry does not do so, or the reverse. Among equals the first entry wins.
        An action counts as mapped if nothing but sneak, sprint or less than half a camera step
        differs.

        Args:
            actions: n native actions; what is missing in one is not pressed.

        Returns:
            Indices (n,) int64, and whether each was mapped (n,) bool.
        """
        entries, recorded = self._vectors([a for _, a in self.actions]), self._vectors(actions)
        weights = np.array([KEY_WEIGHTS.get(key, 1.0) for key in KEYS])
        difference = np.abs(entries[None] - recorded[:, None])  # (n, entries, keys + 2 + verbs)
        n = len(KEYS)
        keys = difference[..., :n] * weights
        turns = np.clip(recorded[:, None, n : n + 2], -1, 1)
        camera = np.abs(entries[None, :, n : n + 2] - turns) * CAMERA_WEIGHT
        items = difference[..., n + 2 :] * ITEM_WEIGHT
        distance = keys.sum(-1) + camera.sum(-1) + items.sum(-1)
        indices = distance.argmin(1)
        rows = np.arange(len(indices))
        matters = weights >= 1
        mapped = (
            (keys[rows, indices][:, matters].sum(-1) == 0)
            & (difference[rows, indices, n : n + 2] < 0.5).all(-1)
            & (items[rows, indices].sum(-1) == 0)
        )
        return indices.astype(np.int64), mapped

    def _vectors(self, actions: Sequence[Action]) -> np.ndarray:
        """Actions as rows (keys, camera in steps, item verbs)."""
        rows = np.zeros((len(actions), len(KEYS) + 2 + len(ITEM_VERBS)))
        for row, action in zip(rows, actions, strict=True):
            row[: len(KEYS)] = [float(action.get(key, 0)) for key in KEYS]
            row[len(KEYS) : len(KEYS) + 2] = np.asarray(action.get("camera", (0, 0)), float)
            row[len(KEYS) + 2 :] = [action.get(verb, "none") != "none" for verb in ITEM_VERBS]
        rows[:, len(KEYS) : len(KEYS) + 2] /= self.camera_step
        return rows


def _turns(step: float) -> tuple[tuple[str, Action], ...]:
    return (
        ("turn-up", {"camera": (-step, 0.0)}),
        ("turn-down", {"camera": (step, 0.0)}),
        ("turn-left", {"camera": (0.0, -step)}),
        ("turn-right", {"camera": (0.0, step)}),
    )


def _combined() -> tuple[tuple[str, Action], ...]:
    moves: tuple[tuple[str, Action], ...] = (
        ("", {}),
        ("forward", {"forward": 1}),
        ("forward+jump", {"forward": 1, "jump": 1}),
    )
    hands: tuple[tuple[str, Action], ...] = (("", {}), ("attack", {"attack": 1}))
    return tuple(
        ("+".join(filter(None, (move, turn, hand))) or "noop", {**a, **b, **c})
        for move, a in moves
        for turn, b in (("", {}), *_turns(15.0))
        for hand, c in hands
    )


BASELINES = ActionTable(
    name="baselines",
    actions=(
        ("attack", {"attack": 1}),
        ("forward", {"forward": 1}),
        ("forward+jump", {"forward": 1, "jump": 1}),
        *_turns(10.0),
    ),
)
DREAMERV3 = ActionTable(
    name="dreamerv3",
    actions=(
        ("noop", {}),
        ("attack", {"attack": 1}),
        *_turns(15.0),
        ("forward", {"forward": 1}),
        ("back", {"back": 1}),
        ("left", {"left": 1}),
        ("right", {"right": 1}),
        ("forward+jump", {"forward": 1, "jump": 1}),
        ("place-dirt", {"place": "dirt"}),
    ),
    sticky_attack=30,
    sticky_jump=10,
)
COMBINED = ActionTable(name="combined", actions=_combined())
TABLES = {table.name: table for table in (BASELINES, DREAMERV3, COMBINED)}


def find_table(name: str) -> ActionTable:
    """Look up a table.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in TABLES:
        raise ValueError(f"there is no action table {name!r}: choose one of {', '.join(TABLES)}")
    return TABLES[name]


class ActionPlayer:
    """Turns one decision into the native actions of the ticks it lasts.

    Keys are held for the whole decision, while a turn or a use of an item happens in its first tick
    only. Sticky keys and the pitch limit are applied tick by tick, as DreamerV3 does.

    Args:
        noop: The task's complete native action that does nothing.
        sticky_attack: Ticks for which attack stays pressed; 0 is as long as asked.
        sticky_jump: The same for jump, which then also goes forward.
        pitch_limit: Lowest and highest pitch in degrees, or None.
    """

    def __init__(
        self,
        noop: Action,
        sticky_attack: int = 0,
        sticky_jump: int = 0,
        pitch_limit: tuple[float, float] | None = None,
    ) -> None:
        self._noop = dict(noop)
        self._sticky_attack = sticky_attack
        self._sticky_jump = sticky_jump
        self._pitch_limit = pitch_limit
        self.reset()

    def reset(self) -> None:
        """Forget the last episode; the new one starts with a level view."""
        self.pitch = 0.0
        self._attack_left = 0
        self._jump_left = 0

    def ticks(self, action: Action, count: int) -> list[dict[str, Any]]:
        """Expand one decision.

        Args:
            action: Part of a native action; keys that the task does not have are ignored.
            count: Ticks it lasts.

        Returns:
            `count` complete native actions.
        """
        known = {key: value for key, value in action.items() if key in self._noop}
        held = {key: value for key, value in known.items() if key in KEYS}
        return [
            self._apply({**self._noop, **(known if tick == 0 else held)}) for tick in range(count)
        ]

    def _apply(self, action: dict[str, Any]) -> dict[str, Any]:
        if self._sticky_attack:
            if action["attack"]:
                self._attack_left = self._sticky_attack
            if self._attack_left > 0:
                action["attack"], action["jump"] = 1, 0
                self._attack_left -= 1
        if self._sticky_jump:
            if action["jump"]:
                self._jump_left = self._sticky_jump
            if self._jump_left > 0:
                action["jump"] = action["forward"] = 1
                self._jump_left -= 1
        pitch, yaw = (float(angle) for angle in action["camera"])
        if self._pitch_limit is not None:
            low, high = self._pitch_limit
            if pitch and not low <= self.pitch + pitch <= high:
                pitch = 0.0
        self.pitch = min(90.0, max(-90.0, self.pitch + pitch))
        action["camera"] = np.array([pitch, yaw], np.float32)
        return action
