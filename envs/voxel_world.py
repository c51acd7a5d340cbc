"""A small deterministic voxel world with Minecraft's walking physics: the inside of the stand-in.

This is not Minecraft and makes no attempt to look like it beyond what the tasks need: a heightmap
of blocks with trees, gravity, collisions, jumping, breaking and placing of blocks. One tick is 1/20
s; speeds, jump height, drag and breaking times are those of the game's survival mode. The same seed
gives the same world, and the same commands then give the same states, bit for bit.

Axes are Minecraft's: x east, y up, z south; yaw 0 faces south and grows clockwise; positive pitch
looks down.
"""

import dataclasses
import math

import numpy as np

AIR, GRASS, DIRT, STONE, SAND, LOG, LEAVES, DIAMOND, BEDROCK, SKY = range(10)
BREAK_TICKS = {GRASS: 18, DIRT: 15, SAND: 15, LEAVES: 6, STONE: 150, LOG: 60}
AXE_BREAK_TICKS = {LOG: 10}
DROPS = {GRASS: "dirt", DIRT: "dirt", SAND: "sand", LOG: "log"}

HALF_WIDTH = 0.3
BODY_HEIGHT = 1.8
EYE_HEIGHT = 1.62
REACH = 4.5


def smooth_noise(rng: np.random.Generator, side: int, scale: int) -> np.ndarray:
    """Draw smoothly interpolated random values with features of about `scale` cells.

    Returns:
        (side, side) float64 in [0, 1].
    """
    cells = side // scale + 2
    grid = rng.random((cells, cells))
    at = np.arange(side) / scale
    low = at.astype(int)
    blend = at - low
    blend = blend * blend * (3 - 2 * blend)
    rows = grid[low] * (1 - blend)[:, None] + grid[low + 1] * blend[:, None]
    return rows[:, low] * (1 - blend) + rows[:, low + 1] * blend


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What kind of world is grown."""

    side: int = 176
    """Blocks along x and z; the outermost blocks are bedrock walls."""
    amplitude: float = 5.0
    """Height difference in blocks between valleys and hills."""
    tree_density: float = 0.012
    """Fraction of the grass blocks that carry a tree."""


class VoxelWorld:
    """The blocks.

    The top layer is SKY and the walls are BEDROCK, so a ray from inside always ends in a block and
    indices never leave the array.

    Args:
        seed: Decides everything.
        config: See `WorldConfig`.

    Attributes:
        blocks: (height, side, side) uint8, indexed [y, z, x].
        surface: (side, side) int64, y of the highest ground block, indexed [z, x].
    """

    def __init__(self, seed: int, config: WorldConfig | None = None) -> None:
        self.config = config if config is not None else WorldConfig()
        rng = np.random.default_rng(seed % 2**63)
        side = self.config.side
        relief = 0.8 * smooth_noise(rng, side, 22) + 0.2 * smooth_noise(rng, side, 7)
        self.surface = (4 + np.rint(self.config.amplitude * relief)).astype(np.int64)
        self.height = int(self.surface.max()) + 10
        soil = smooth_noise(rng, side, 16)
        top = np.select([soil < 0.25, soil > 0.78], [SAND, STONE], GRASS)
        under = np.select([top == GRASS], [DIRT], top)
        y = np.arange(self.height)[:, None, None]
        blocks = np.zeros((self.height, side, side), np.uint8)
        blocks[y < self.surface] = STONE
        blocks = np.where((y < self.surface) & (y >= self.surface - 3), under, blocks)
        blocks = np.where(y == self.surface, top, blocks).astype(np.uint8)
        blocks[0] = BEDROCK
        for wall in (blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]):
            wall[:] = BEDROCK
        blocks[-1] = SKY
        self.blocks = np.ascontiguousarray(blocks)
        self._plant_trees(rng, top)

    def _plant_trees(self, rng: np.random.Generator, top: np.ndarray) -> None:
        side = self.config.side
        wanted = (rng.random((side, side)) < self.config.tree_density) & (top == GRASS)
        wanted[:4] = wanted[-4:] = wanted[:, :4] = wanted[:, -4:] = False
        taken = np.zeros_like(wanted)
        for z, x in zip(*np.nonzero(wanted), strict=True):
            tall = int(rng.integers(4, 6))
            if taken[z - 2 : z + 3, x - 2 : x + 3].any():
                continue
            taken[z, x] = True
            ground = self.surface[z, x]
            crown = self.blocks[ground + tall - 1 : ground + tall + 1, z - 2 : z + 3, x - 2 : x + 3]
            crown[crown == AIR] = LEAVES
            hat = self.blocks[ground + tall + 1, z - 1 : z + 2, x - 1 : x + 2]
            hat[hat == AIR] = LEAVES
            self.blocks[ground + 1 : ground + tall + 1, z, x] = LOG

    def clear(self, x: int, z: int, radius: int = 2) -> None:
        """Remove the trees whose blocks stand within `radius` of a column."""
        area = self.blocks[:-1, z - radius : z + radius + 1, x - radius : x + radius + 1]
        area[(area == LOG) | (area == LEAVES)] = AIR

    def solid(self, x: int, y: int, z: int) -> bool:
        """Whether a body can not be where this block is; outside everything is solid."""
        side = self.config.side
        if not (0 <= x < side and 0 <= z < side and y >= 0):
            return True
        return y < self.height and self.blocks[y, z, x] not in (AIR, SKY)


@dataclasses.dataclass
class Commands:
    """What the player does in one tick."""

    forward: bool = False
    back: bool = False
    left: bool = False
    right: bool = False
    jump: bool = False
    sneak: bool = False
    sprint: bool = False
    attack: bool = False
    camera: tuple[float, float] = (0.0, 0.0)
    """Change of (pitch, yaw) in degrees."""
    place: str = "none"


class Player:
    """A body in the world: position of the feet, view direction, velocity, inventory.

    Args:
        world: The world it walks in and changes.
        x: Column of the start.
        z: Row of the start.
        yaw: First view direction in degrees.
        inventory: Item names and counts.
    """

    def __init__(
        self, world: VoxelWorld, x: int, z: int, yaw: float, inventory: dict[str, int]
    ) -> None:
        self.world = world
        self.position = [x + 0.5, float(world.surface[z, x] + 1), z + 0.5]
        self.velocity = [0.0, 0.0, 0.0]
        self.yaw = yaw
        self.pitch = 0.0
        self.on_ground = True
        self.inventory = dict(inventory)
        self._digging: tuple[int, int, int] | None = None
        self._dug_ticks = 0

    @property
    def eye(self) -> tuple[float, float, float]:
        """Where the camera is."""
        x, y, z = self.position
        return x, y + EYE_HEIGHT, z

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector of the view."""
        yaw, pitch = math.radians(self.yaw), math.radians(self.pitch)
        return -math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)

    def tick(self, commands: Commands) -> None:
        """Advance by 1/20 s."""
        pitch, yaw = commands.camera
        self.pitch = min(90.0, max(-90.0, self.pitch + pitch))
        self.yaw = (self.yaw + yaw + 180.0) % 360.0 - 180.0
        if commands.place == "dirt":
            self._place_dirt()
        self._dig(commands.attack)
        self._walk(commands)

    def _walk(self, commands: Commands) -> None:
        ahead = float(commands.forward) - float(commands.back)
        aside = float(commands.right) - float(commands.left)
        length = max(1.0, math.hypot(ahead, aside))
        sprinting = commands.sprint and ahead > 0 and not commands.sneak
        speed = (0.3 if commands.sneak else 1.0) * (1.3 if sprinting else 1.0) * 0.98
        acceleration = (0.1 if self.on_ground else 0.02) * speed
        sin, cos = math.sin(math.radians(self.yaw)), math.cos(math.radians(self.yaw))
        if commands.jump and self.on_ground:
            self.velocity[1] = 0.42
            if sprinting:
                self.velocity[0] -= 0.2 * sin
                self.velocity[2] += 0.2 * cos
        self.velocity[0] += acceleration * (-sin * ahead - cos * aside) / length
        self.velocity[2] += acceleration * (cos * ahead - sin * aside) / length
        falling = self.velocity[1] <= 0
        friction = 0.546 if self.on_ground else 0.91
        self.on_ground = self._move(1) and falling
        self._move(0)
        self._move(2)
        self.velocity[0] *= friction
        self.velocity[2] *= friction
        self.velocity[1] = (self.velocity[1] - 0.08) * 0.98

    def _move(self, axis: int) -> bool:
        """Move along one axis up to the first block. Returns whether there was one."""
        before = self.position[axis]
        step = self.velocity[axis]
        self.position[axis] = before + step
        if not self._collides():
            return False
        low, high = (0.0, BODY_HEIGHT) if axis == 1 else (HALF_WIDTH, HALF_WIDTH)
        if step > 0:
            self.position[axis] = math.floor(before + step + high) - high - 1e-6
        else:
            self.position[axis] = math.floor(before + step - low) + 1 + low + 1e-6
        if self._collides():
            self.position[axis] = before
        self.velocity[axis] = 0.0
        return True

    def _cells(self, grow: float = 0.0) -> list[tuple[int, int, int]]:
        """The blocks that the body overlaps when it is `grow` larger on every side."""
        x, y, z = self.position
        reach = HALF_WIDTH + grow
        return [
            (i, j, k)
            for j in range(math.floor(y - grow), math.floor(y + BODY_HEIGHT + grow) + 1)
            for k in range(math.floor(z - reach), math.floor(z + reach) + 1)
            for i in range(math.floor(x - reach), math.floor(x + reach) + 1)
        ]

    def _collides(self) -> bool:
        return any(self.world.solid(*cell) for cell in self._cells())

    def touches(self, block: int) -> bool:
        """Whether a block of this kind is next to the body or under its feet."""
        side, blocks = self.world.config.side, self.world.blocks
        return any(
            0 <= x < side and 0 <= z < side and 0 <= y < len(blocks) and blocks[y, z, x] == block
            for x, y, z in self._cells(grow=0.1)
        )

    def look_at(self) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
        """Find the block in view within reach.

        Returns:
            The block and the free cell in front of its visible face, or None.
        """
        cell = [math.floor(value) for value in self.eye]
        steps, upcoming, spacing = [], [], []
        for value, slope in zip(self.eye, self.direction, strict=True):
            slope = slope if abs(slope) > 1e-9 else 1e-9
            steps.append(1 if slope > 0 else -1)
            upcoming.append((math.floor(value) + (slope > 0) - value) / slope)
            spacing.append(abs(1 / slope))
        while True:
            axis = upcoming.index(min(upcoming))
            if upcoming[axis] > REACH:
                return None
            in_front = (cell[0], cell[1], cell[2])
            cell[axis] += steps[axis]
            upcoming[axis] += spacing[axis]
            if self.world.solid(*cell):
                return (cell[0], cell[1], cell[2]), in_front

    def _dig(self, attack: bool) -> None:
        hit = self.look_at() if attack else None
        if hit is None:
            self._digging, self._dug_ticks = None, 0
            return
        (x, y, z), _ = hit
        if hit[0] != self._digging:
            self._digging, self._dug_ticks = hit[0], 0
        self._dug_ticks += 1
        side = self.world.config.side
        if not (0 < x < side - 1 and 0 < z < side - 1 and 0 < y < self.world.height):
            return
        block = int(self.world.blocks[y, z, x])
        ticks = BREAK_TICKS.get(block)
        if self.inventory.get("iron_axe"):
            ticks = AXE_BREAK_TICKS.get(block, ticks)
        if ticks is None or self._dug_ticks < ticks:
            return
        self.world.blocks[y, z, x] = AIR
        self._digging, self._dug_ticks = None, 0
        if block in DROPS:
            self.inventory[DROPS[block]] = self.inventory.get(DROPS[block], 0) + 1

    def _place_dirt(self) -> None:
        hit = self.look_at()
        if hit is None or self.inventory.get("dirt", 0) < 1:
            return
        x, y, z = hit[1]
        if y >= self.world.height - 1 or self.world.solid(x, y, z) or hit[1] in self._cells():
            return
        self.world.blocks[y, z, x] = DIRT
        self.inventory["dirt"] -= 1
