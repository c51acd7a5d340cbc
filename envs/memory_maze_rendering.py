"""Pictures of MuJoCo scenes made of many flat walls, drawn fast and pixel for pixel as MuJoCo does.

What can be kept from picture to picture is kept (driver context, scene, options); walls outside of
the camera's view are left out before they reach the driver; the shadow map, which a world without
shadows never fills, is not allocated. None of it changes a pixel.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np

_MISSING_GL = (
    "no working OpenGL driver to render with (MUJOCO_GL={backend!r}). On Debian or Ubuntu install "
    "one with `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` and set MUJOCO_GL=egl, or "
    "with `apt-get install libosmesa6` and set MUJOCO_GL=osmesa. The driver said: {error}"
)

# A geom group that MuJoCo does not draw by default; a geom's group means nothing to the physics.
_HIDDEN_GROUP = 5


def choose_gl_backend() -> None:
    """Choose EGL where there is no display and nothing was chosen; call before MuJoCo is imported.

    Mesa's software driver gets no threads of its own: for pictures this small they cost more than
    they bring, and a process that has them cannot be forked for `gymnasium.vector.AsyncVectorEnv`.
    """
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform.startswith("linux") and headless:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")


def missing_gl(error: Exception) -> RuntimeError:
    """The error that says which driver to install, from the one that a driver raised."""
    backend = os.environ.get("MUJOCO_GL", "")
    return RuntimeError(_MISSING_GL.format(backend=backend, error=f"{error!r}"))


def _create_gl_context(mujoco: Any, size: int) -> Any:
    # mujoco.GLContext is fixed when mujoco is first imported, which others may have done before
    # the backend was chosen.
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if backend in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
    return mujoco.GLContext(size, size)


def _close(reference: weakref.ref[Renderer]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()


class Renderer:
    """Draws the fixed cameras of one model after another into NumPy arrays.

    Args:
        mujoco: the mujoco module.
        dm_render: the module `dm_control._render.base`.
        max_size: side of the largest picture in pixels.

    Raises:
        RuntimeError: no OpenGL driver works.
    """

    def __init__(self, mujoco: Any, dm_render: Any, max_size: int) -> None:
        self._mujoco = mujoco
        self._dm_render = dm_render
        self._max_size = max_size
        self._gl: Any = None
        self._context: Any = None
        try:
            self._gl = _create_gl_context(mujoco, max_size)
            self._make_current()
        except Exception as error:  # each backend fails with exceptions of its own
            raise missing_gl(error) from error
        # The context has to go before the driver does, which mujoco shuts down at exit.
        atexit.register(_close, weakref.ref(self))

    def _make_current(self) -> None:
        self._gl.make_current()
        # dm_control remembers which of its own contexts is current and would draw into ours.
        self._dm_render._CURRENT_CONTEXT_FOR_THREAD.clear()
        self._dm_render._CURRENT_THREAD_FOR_CONTEXT.clear()

    def load(self, model: Any, data: Any) -> None:
        """Draw another model from now on.

        Args:
            model: a compiled `mujoco.MjModel`; shadows and picture size are set in it.
            data: its `mujoco.MjData` with positions computed.

        Raises:
            RuntimeError: the OpenGL driver does not work.
        """
        mujoco = self._mujoco
        self._model, self._data = model, data
        if not np.any(model.light_castshadow):
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = self._max_size
        self._make_current()
        if self._context is not None:
            self._context.free()
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        except mujoco.FatalError as error:
            raise missing_gl(error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, model.ngeom + model.nsite + 16)
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._find_static_geoms()

    def _find_static_geoms(self) -> None:
        """Centres and bounding spheres of what never moves."""
        model = self._model
        static = model.body_weldid[model.geom_bodyid] == 0
        drawn = np.asarray(self._option.geomgroup)[model.geom_group] > 0
        self._static = np.flatnonzero(static & drawn)
        self._static_group = model.geom_group[self._static].copy()
        self._centers = self._data.geom_xpos[self._static].copy()
        # MuJoCo gives planes no bounding sphere.
        is_plane = model.geom_type[self._static] == self._mujoco.mjtGeom.mjGEOM_PLANE
        sides = model.geom_size[self._static, :2]
        radius = np.where(is_plane, np.hypot(*sides.T), model.geom_rbound[self._static])
        self._radius = radius * 1.01 + 0.05
        # A plane of size 0 is infinite.
        self._radius[is_plane & (sides == 0).any(axis=1)] = np.inf

    def _hide_out_of_view(self, camera_id: int) -> None:
        """Hide the static geoms whose bounding spheres lie outside of a square view."""
        model, data = self._model, self._data
        rotation = data.cam_xmat[camera_id].reshape(3, 3)
        offset = (self._centers - data.cam_xpos[camera_id]) @ rotation  # camera looks along -z
        half_angle = np.deg2rad(model.cam_fovy[camera_id]) / 2
        sideways = np.abs(offset[:, :2]).max(axis=1)
        outside = sideways * np.cos(half_angle) + offset[:, 2] * np.sin(half_angle) > self._radius
        group = self._static_group.copy()
        group[outside] = _HIDDEN_GROUP
        model.geom_group[self._static] = group

    def draw(self, camera_id: int, size: int, spheres: tuple[Any, ...] = ()) -> np.ndarray:
        """Picture of one camera.

        Args:
            camera_id: which of the model's cameras, with perspective.
            size: side of the picture in pixels.
            spheres: more to draw, each (centre (3,), radius, rgba (4,)).

        Returns:
            A new uint8 array (size, size, 3).
        """
        mujoco, scene = self._mujoco, self._scene
        self._make_current()
        self._hide_out_of_view(camera_id)
        self._camera.fixedcamid = camera_id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturb, self._camera, everything, scene
        )
        for center, radius, rgba in spheres:
            mujoco.mjv_initGeom(
                scene.geoms[scene.ngeom],
                mujoco.mjtGeom.mjGEOM_SPHERE,
                np.full(3, radius),
                np.asarray(center, np.float64),
                np.eye(3).ravel(),
                np.asarray(rgba, np.float32),
            )
            scene.ngeom += 1
        rect = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(rect, scene, self._context)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, rect, self._context)
        return pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Give the driver's memory back; closing twice does nothing."""
        if self._gl is not None:
            self._make_current()
            if self._context is not None:
                self._context.free()
            self._gl.free()
            self._context = self._gl = None

    def __del__(self) -> None:
        # Left to itself MuJoCo would delete our buffers by number in whichever context is current.
        self.close()
