"""Draws the voxel world of the stand-in with NumPy: one exact ray per pixel, no GPU, no window.

Rays walk from block face to block face (Amanatides and Woo, "A fast voxel traversal algorithm for
ray tracing", 1987), all of them at once; rays that have hit something are taken out now and then.
"""

import numpy as np

from envs.voxel_world import (
    AIR,
    BEDROCK,
    DIAMOND,
    DIRT,
    GRASS,
    LEAVES,
    LOG,
    SAND,
    SKY,
    STONE,
    VoxelWorld,
)

VIEW_DISTANCE = 40.0
SKY_COLOUR = np.array([126, 170, 255], np.float32)
TEXELS = 8
FACE_LIGHT = np.array([0.72, 1.0, 0.86], np.float32)  # faces across x, y, z
UNDERSIDE_LIGHT = 0.5


def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Colours (10, 2, 3) of sides and tops, and grain (10, TEXELS, TEXELS), of every block."""
    colours = np.zeros((10, 2, 3), np.float32)
    for block, side, top in (
        (GRASS, (112, 92, 62), (92, 156, 66)),
        (DIRT, (128, 92, 64), (128, 92, 64)),
        (STONE, (124, 124, 126), (132, 132, 134)),
        (SAND, (214, 203, 150), (221, 211, 160)),
        (LOG, (92, 70, 42), (168, 136, 84)),
        (LEAVES, (44, 104, 32), (50, 116, 38)),
        (DIAMOND, (92, 224, 214), (110, 240, 230)),
        (BEDROCK, (58, 58, 66), (58, 58, 66)),
        (SKY, SKY_COLOUR, SKY_COLOUR),
    ):
        colours[block] = np.array([side, top])
    rng = np.random.default_rng(20)
    grain = 1 + 0.12 * rng.uniform(-1, 1, (10, TEXELS, TEXELS)).astype(np.float32)
    grain[LEAVES] = 1 + 0.35 * rng.uniform(-1, 1, (TEXELS, TEXELS))
    grain[LOG] = 1 + 0.3 * rng.uniform(-1, 1, (1, TEXELS))
    grain[DIAMOND, 2:6, 2:6] = 1.15
    grain[SKY] = 1
    return colours, grain


COLOURS, GRAIN = _palette()


class VoxelRenderer:
    """A camera of fixed resolution.

    Args:
        width: Pixels per row.
        height: Rows.
        field_of_view: Vertical angle in degrees; 70 is Minecraft's default.
    """

    def __init__(self, width: int, height: int, field_of_view: float = 70.0) -> None:
        self.width = width
        self.height = height
        tangent = np.tan(np.radians(field_of_view) / 2)
        up = (1 - (np.arange(height) * 2 + 1) / height) * tangent
        right = ((np.arange(width) * 2 + 1) / width - 1) * tangent * width / height
        rays = np.stack(
            [
                np.broadcast_to(right, (height, width)),
                np.broadcast_to(up[:, None], (height, width)),
                np.ones((height, width)),
            ]
        ).reshape(3, -1)
        self._rays = (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)  # (3, h * w)

    def render(
        self, world: VoxelWorld, eye: tuple[float, float, float], yaw: float, pitch: float
    ) -> np.ndarray:
        """Draw one frame.

        Args:
            world: What is looked at.
            eye: Camera position, inside of the world and outside of solid blocks.
            yaw: Degrees, 0 looks along +z, growing clockwise.
            pitch: Degrees, positive looks down.

        Returns:
            (height, width, 3) uint8, top row first.
        """
        directions = self._directions(yaw, pitch)
        blocks, distances, axes = self._trace(world, eye, directions)
        return self._shade(eye, directions, blocks, distances, axes)

    def _directions(self, yaw: float, pitch: float) -> np.ndarray:
        yaw, pitch = np.radians(yaw), np.radians(pitch)
        basis = np.array(
            [
                [-np.cos(yaw), -np.sin(yaw) * np.sin(pitch), -np.sin(yaw) * np.cos(pitch)],
                [0.0, np.cos(pitch), -np.sin(pitch)],
                [-np.sin(yaw), np.cos(yaw) * np.sin(pitch), np.cos(yaw) * np.cos(pitch)],
            ],
            np.float32,
        )
        # einsum and not @: BLAS may round differently from machine to machine and run to run.
        directions = np.einsum("ij,jn->in", basis, self._rays)
        return np.where(np.abs(directions) < 1e-6, np.float32(1e-6), directions)  # (3, h * w)

    def _trace(
        self, world: VoxelWorld, eye: tuple[float, float, float], directions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the first block on every ray: its kind, distance, and axis of the face."""
        flat = world.blocks.reshape(-1)
        side = world.config.side
        strides = np.array([1, side * side, side], np.int32)
        cell = np.floor(np.array(eye))
        offset = (cell - np.array(eye)).astype(np.float32)[:, None]
        positive = directions > 0
        spacing = 1 / np.abs(directions)
        next_x, next_y, next_z = (offset + positive) / directions
        space_x, space_y, space_z = spacing
        step_x, step_y, step_z = np.where(positive, strides[:, None], -strides[:, None])

        n = directions.shape[1]
        index = np.full(n, int(cell[1] * strides[1] + cell[2] * side + cell[0]), np.int32)
        rays = np.arange(n)
        alive = np.ones(n, bool)
        out_block = np.full(n, SKY, np.uint8)
        out_distance = np.full(n, VIEW_DISTANCE, np.float32)
        out_axis = np.zeros(n, np.uint8)
        while len(rays):
            in_x = (next_x < next_y) & (next_x < next_z)
            in_y = ~in_x & (next_y < next_z)
            distance = np.minimum(np.minimum(next_x, next_y), next_z)
            in_z = ~(in_x | in_y)
            index += in_x * step_x + in_y * step_y + in_z * step_z
            next_x += in_x * space_x
            next_y += in_y * space_y
            next_z += in_z * space_z
            block = flat.take(index, mode="clip")
            hit = alive & ((block != AIR) | (distance > VIEW_DISTANCE))
            if not hit.any():
                continue
            found = rays[hit]
            out_block[found] = np.where(distance[hit] > VIEW_DISTANCE, SKY, block[hit])
            out_distance[found] = distance[hit]
            out_axis[found] = (in_y + 2 * in_z)[hit]
            alive &= ~hit
            if alive.sum() < 0.8 * len(rays):
                rays, index = rays[alive], index[alive]
                next_x, next_y, next_z = next_x[alive], next_y[alive], next_z[alive]
                space_x, space_y, space_z = space_x[alive], space_y[alive], space_z[alive]
                step_x, step_y, step_z = step_x[alive], step_y[alive], step_z[alive]
                alive = np.ones(len(rays), bool)
        return out_block, out_distance, out_axis

    def _shade(
        self,
        eye: tuple[float, float, float],
        directions: np.ndarray,
        blocks: np.ndarray,
        distances: np.ndarray,
        axes: np.ndarray,
    ) -> np.ndarray:
        points = np.array(eye, np.float32)[:, None] + directions * distances
        fraction = points - np.floor(points)
        texel = np.minimum((fraction * TEXELS).astype(np.int32), TEXELS - 1)
        is_top = (axes == 1) & (directions[1] < 0)
        u = np.where(axes == 0, texel[2], texel[0])
        v = np.where(axes == 1, texel[2], texel[1])
        turf = (blocks == GRASS) & (axes != 1) & (v >= TEXELS - 2)
        colour = COLOURS[blocks, (is_top | turf).astype(np.int32)]
        light = FACE_LIGHT[axes] * GRAIN[blocks, v, u]
        light = np.where((axes == 1) & ~is_top, light * UNDERSIDE_LIGHT, light)
        light = np.where(blocks == SKY, np.float32(1), light)
        haze = np.clip(distances / VIEW_DISTANCE, 0, 1) ** 3
        height = np.clip(directions[1], 0, 1)
        sky = SKY_COLOUR - height[:, None] * np.array([60, 50, 20], np.float32)
        lit = np.where((blocks == SKY)[:, None], sky, colour * light[:, None])
        lit += (sky - lit) * haze[:, None]
        return np.clip(lit, 0, 255).astype(np.uint8).reshape(self.height, self.width, 3)


def draw_compass(frame: np.ndarray, angle: float) -> None:
    """Draw a hand-held compass into the lower right corner of a frame, in place.

    Args:
        frame: (h, w, 3) uint8.
        angle: Degrees from the view direction to the target, positive to the right; 0 points up.
    """
    size = min(frame.shape[:2])
    radius = max(3.0, size * 0.11)
    centre_row, centre_column = frame.shape[0] - radius - 1, frame.shape[1] - radius - 1
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    up, right = centre_row - rows, columns - centre_column
    distance = np.hypot(up, right)
    frame[distance <= radius] = (70, 70, 74)
    frame[distance <= radius - 1] = (205, 205, 210)
    sin, cos = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    along, across = up * cos + right * sin, right * cos - up * sin
    needle = (along >= 0) & (along <= radius - 1) & (np.abs(across) <= max(0.8, radius * 0.14))
    frame[needle] = (220, 30, 30)
