"""A ring-shaped corridor whose panels can only be known by having seen them: an instrument.

Every panel, one on each wall of each cell, gets a colour and a mark drawn at random per episode.
A frame shows the panel in front of the agent and, on floor and ceiling, the number of the cell in
binary, in shades that tell the side: so where one is can be read off any part of the frame, where
one will be follows from the action, and what hangs there follows from memory and from nothing else.
From the second lap on every frame is exactly predictable by recall. A model that remembers k frames
must fail on panels last seen earlier than that, a model with a memory must not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np

COLORS = np.array(
    [
        (220, 40, 40),
        (40, 170, 60),
        (50, 80, 230),
        (230, 210, 40),
        (170, 60, 200),
        (40, 200, 210),
        (240, 140, 30),
        (150, 150, 150),
    ],
    dtype=np.uint8,
)
"""Colours of panels, (8, 3)."""
NUM_MARKS = 4
"""Disc, frame, cross, bars."""
FORWARD, BACK, TURN, STAY = range(4)
NUM_ACTIONS = 4
NEVER = -1
"""`last_seen` of a panel that was not seen before."""


class Panel(NamedTuple):
    """What hangs on a wall; arrays of any one shape."""

    color: np.ndarray
    mark: np.ndarray


def draw_panels(num_cells: int, rng: np.random.Generator) -> Panel:
    """Draw the panels of an episode, independent and uniform: (num_cells, 2) each."""
    shape = (num_cells, 2)
    return Panel(rng.integers(len(COLORS), size=shape), rng.integers(NUM_MARKS, size=shape))


def move(
    cell: np.ndarray, side: np.ndarray, action: np.ndarray, num_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where actions lead: cell and side afterwards; arrays of any one shape.

    FORWARD and BACK walk clockwise and counter-clockwise past the wall looked at, TURN looks at the
    wall behind, STAY does nothing.
    """
    step = np.where(action == FORWARD, 1, np.where(action == BACK, -1, 0))
    return (cell + step) % num_cells, np.where(action == TURN, 1 - side, side)


def _mark_masks(height: int, width: int) -> np.ndarray:
    """Pixels of each mark on a panel, (NUM_MARKS, height, width) bool."""
    y = np.linspace(-1, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None]
    distance = np.maximum(np.abs(x), np.abs(y))
    masks = (
        np.hypot(x, y) < 0.55,
        (distance < 0.7) & (distance > 0.4),
        (np.minimum(np.abs(x), np.abs(y)) < 0.18) & (distance < 0.75),
        (np.abs(np.abs(x) - 0.5) < 0.2) & (np.abs(y) < 0.75),
    )
    return np.stack([np.broadcast_to(mask, (height, width)) for mask in masks])


def draw_frames(
    panel: Panel, cell: np.ndarray, side: np.ndarray, num_cells: int, size: int = 32
) -> np.ndarray:
    """Draw what is seen.

    Args:
        panel: colours and marks looked at, (...).
        cell, side: where the agent stands and which wall it looks at, (...) integers.
        num_cells: cells of the ring.
        size: side of the frame in pixels.

    Returns:
        (..., size, size, 3) uint8.
    """
    shape = np.shape(cell)
    color, mark, cell, side = (np.ravel(a) for a in (panel.color, panel.mark, cell, side))
    wall, strip = _wall_rows(size)
    frames = np.empty((len(cell), size, size, 3), np.uint8)
    frames[:, wall] = COLORS[color][:, None, None]
    frames[:, wall][_mark_masks(size - 2 * strip, size)[mark]] = 255
    bits = max(int(num_cells - 1).bit_length(), 1)
    width = max(size // 2 // bits, 1)
    column = np.arange(size) % (size // 2) // width  # which bit, in either half of the frame
    number = (cell[:, None] >> column.clip(max=bits)) & 1  # (n, size)
    dark, light = (np.where(side == 0, *pair)[:, None] for pair in ((20, 90), (255, 180)))
    code = np.where((number == 1) & (column < bits), light, dark)[:, None, :, None]
    frames[:, :strip] = code
    frames[:, size - strip :] = code
    return frames.reshape(*shape, size, size, 3)


def _wall_rows(size: int) -> tuple[slice, int]:
    """Rows of the wall, and how many the ceiling has, and the floor."""
    strip = size // 8
    return slice(strip, size - strip), strip


def read_panels(frames: np.ndarray) -> Panel:
    """Read colour and mark off frames, real or dreamed: the nearest of all panels by pixels.

    Args:
        frames: (..., size, size, 3) uint8.

    Returns:
        Colours and marks (...), always some; the chance of a blind guess is 1/8 and 1/4.
    """
    shape, size = frames.shape[:-3], frames.shape[-2]
    rows, strip = _wall_rows(size)
    marks = _mark_masks(size - 2 * strip, size).reshape(NUM_MARKS, -1).astype(np.float32)
    walls = frames[..., rows, :, :].reshape(-1, marks.shape[-1], 3).astype(np.float32)
    # |wall - template|^2 for templates "white on the mark, the colour elsewhere", without the
    # terms that all templates share.
    background = 1 - marks
    colors = COLORS.astype(np.float32)
    outside = np.einsum("npc,mp->nmc", walls, background)  # (n, marks, 3)
    inside = np.einsum("npc,mp->nm", walls, marks)  # (n, marks)
    cross = np.einsum("nmc,kc->nkm", outside, colors) + 255 * inside[:, None]
    square = np.square(colors).sum(-1)[:, None] * background.sum(-1) + 3 * 255**2 * marks.sum(-1)
    best = (square - 2 * cross).reshape(len(walls), -1).argmin(-1)
    color, mark = np.divmod(best, NUM_MARKS)
    return Panel(color.reshape(shape), mark.reshape(shape))


def recall_distance(cell: np.ndarray, side: np.ndarray, num_cells: int) -> np.ndarray:
    """How many frames ago the panel in each frame was last seen, `NEVER` the first time.

    Args:
        cell, side: (t,) poses of an episode.

    Returns:
        (t,) int64; 1 where the frame before showed the same panel.
    """
    last = np.full((num_cells, 2), NEVER)
    distance = np.full(len(cell), NEVER)
    for t, pose in enumerate(zip(cell, side, strict=True)):
        if last[pose] != NEVER:
            distance[t] = t - last[pose]
        last[pose] = t
    return distance


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """The corridor with pictures as observations.

    Observations are uint8 (size, size, 3). Actions: 0 walk clockwise, 1 walk counter-clockwise,
    2 look at the opposite wall, 3 stay. The reward is 1 whenever a panel is seen for the first
    time in the episode, after the first frame. An episode never terminates; its spec limits it.

    `info` has `cell` and `side`, `color` and `mark` of the panel in front, and `last_seen`: how
    many frames ago it was seen before, or -1.

    Args:
        num_cells: cells of the ring, 2 to 256; one lap is as many steps.
        size: side of the frame in pixels, a multiple of 4 and at least 16.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: an option has a value it cannot have.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self, num_cells: int = 16, *, size: int = 32, render_mode: str | None = None
    ) -> None:
        if size < 16 or size % 4:
            raise ValueError(f"size is a multiple of 4 and at least 16: got {size}")
        if not 2 <= num_cells <= 256:  # 8 bits are what the smallest frames have room for
            raise ValueError(f"a ring has from 2 to 256 cells: got {num_cells}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array': got {render_mode!r}")
        self.num_cells = num_cells
        self.size = size
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self._panels: Panel | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Hang new panels and start anywhere.

        Args:
            seed: decides the panels and the start.
            options: none.
        """
        super().reset(seed=seed)
        self._panels = draw_panels(self.num_cells, self.np_random)
        self._cell = np.asarray(self.np_random.integers(self.num_cells))
        self._side = np.asarray(self.np_random.integers(2))
        self._time = 0
        self._seen: dict[tuple[int, int], int] = {}
        return self._look(self._panels)

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act once.

        Raises:
            ValueError: the action is not one of 0 to 3.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._panels is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(f"an action is an integer from 0 to 3: got {action!r}")
        self._cell, self._side = move(self._cell, self._side, np.asarray(action), self.num_cells)
        self._time += 1
        frame, info = self._look(self._panels)
        return frame, float(info["last_seen"] == NEVER), False, False, info

    def _look(self, panels: Panel) -> tuple[np.ndarray, dict[str, Any]]:
        pose = (int(self._cell), int(self._side))
        last = self._seen.get(pose)
        self._seen[pose] = self._time
        info = {
            "cell": pose[0],
            "side": pose[1],
            "color": int(panels.color[pose]),
            "mark": int(panels.mark[pose]),
            "last_seen": NEVER if last is None else self._time - last,
        }
        return self._draw(panels), info

    def _draw(self, panels: Panel) -> np.ndarray:
        pose = (int(self._cell), int(self._side))
        seen = Panel(panels.color[pose], panels.mark[pose])
        return draw_frames(seen, self._cell, self._side, self.num_cells, self.size)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The frame that is seen, uint8 (size, size, 3)."""
        if self.render_mode is None:
            return None
        if self._panels is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        return self._draw(self._panels)
