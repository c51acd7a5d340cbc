"""The real MineRL (Guss et al. 2019, arXiv 1907.13440) as Gymnasium environments.

`envs.make("minerl-navigate-dense", minecraft=...)` talks to Minecraft through the `minerl` client.
Install the client with `python -m envs.minerl_setup`, which also says what the game itself needs.
`minecraft` is "launch" (the real game), "HOST:PORT" (one that runs already) or "stand-in" (a small
simulation for tests and demonstrations that is not Minecraft). In scripts, the names that end in
"-stand-in", such as "minerl-navigate-dense-stand-in", choose the latter and label all results, and
the environment variable WORLDSIM_MINECRAFT gives the default for the others.

An instance that dies, hangs or sends garbage never becomes data: the step that met the fault ends
the episode as truncated, repeats the last valid observation, and names the reason in
`info["fault"]`; recorders have to drop that step (our collection does). The next reset starts a new
instance, waiting longer each time, and gives up with a `MinecraftError` after `max_restarts` in a
row.
"""

from __future__ import annotations

import os
import time
import warnings
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.minerl_actions import ActionPlayer, find_table

TICKS_PER_SECOND = 20
LARGEST_SEED = 2**31 - 1
TIME_LIMIT_SLACK = 20  # ticks: the game's clock starts before the first observation

MINERL_IDS = {
    "minerl-navigate": "MineRLNavigate-v0",
    "minerl-navigate-dense": "MineRLNavigateDense-v0",
    "minerl-navigate-extreme": "MineRLNavigateExtreme-v0",
    "minerl-navigate-extreme-dense": "MineRLNavigateExtremeDense-v0",
    "minerl-treechop": "MineRLTreechop-v0",
    "minerl-obtain-diamond": "MineRLObtainDiamond-v0",
    "minerl-obtain-diamond-dense": "MineRLObtainDiamondDense-v0",
    "minerl-obtain-iron-pickaxe": "MineRLObtainIronPickaxe-v0",
    "minerl-obtain-iron-pickaxe-dense": "MineRLObtainIronPickaxeDense-v0",
    "minerl-obtain-diamond-shovel": "MineRLObtainDiamondShovel-v0",
    "minerl-basalt-find-cave": "MineRLBasaltFindCave-v0",
    "minerl-basalt-make-waterfall": "MineRLBasaltMakeWaterfall-v0",
    "minerl-basalt-create-village-animal-pen": "MineRLBasaltCreateVillageAnimalPen-v0",
    "minerl-basalt-build-village-house": "MineRLBasaltBuildVillageHouse-v0",
}


class MinecraftError(RuntimeError):
    """There is no Minecraft to play in, and trying again will not help."""


class MineRLEnv(gymnasium.Env[Any, Any]):
    """A MineRL task.

    Observations are the view, uint8 (size, size, 3), or with `obs="dict"` a dict of `pov` and,
    where the task has them, `compass` (1,) float32 in degrees, `inventory` (n,) float32 counts in
    the order of `inventory_items`, and `equipped` (k,) float32 one-hot in the order of
    `equipped_items`.

    Actions are the indices of a table of `envs.minerl_actions`, or with `actions="native"` the dict
    of the task, items as indices into `action_items[verb]` with "none" first.

    An episode terminates when the task ends it (solved, or the player died) and is truncated at the
    time limit or by a fault. Every `info` has `ticks`, and `compass_angle` where there is a
    compass; the last one has `episode_statistics`. `reset(seed=...)` decides the seeds of this
    mission and all that follow without a seed; the real game is not exactly repeatable even so.

    Args:
        name: One of `MINERL_IDS`.
        minecraft: "launch", "stand-in", "PORT" or "HOST:PORT"; None is what WORLDSIM_MINECRAFT
            says, which may not be "stand-in", or "launch".
        obs: "pixels" or "dict".
        actions: Name of an action table, or "native".
        frame_skip: Game ticks (1/20 s) per step; rewards are added up.
        sticky_attack: Replaces the table's number of ticks.
        sticky_jump: Replaces the table's number of ticks.
        pitch_limit: Replaces the table's limit; "table" keeps it and None lifts it.
        size: Side of the picture; other sizes than the task's are resized.
        max_ticks: Length of an episode in ticks; None for the task's.
        step_timeout: Seconds after which an unanswered step is a fault.
        reset_timeout: Seconds after which a reset is one, waiting for a busy instance included.
        launch_timeout: Seconds that starting an instance may take.
        max_restarts: How often in a row, without an episode in between that went well as long as it
            was played, it is started anew.
        restart_backoff: Seconds before the first restart; doubled every time.
        minecraft_dir: Folder whose `launchClient.sh` starts the game; None for the client's own.
        standin_faults: JSON with fields of `envs.minecraft_standin.Faults`, for tests.
        render_mode: None or "rgb_array".

    Raises:
        MinecraftError: The `minerl` package is missing.
        ValueError: An option has a value it can not have.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": TICKS_PER_SECOND,
    }

    def __init__(
        self,
        name: str = "minerl-navigate-dense",
        *,
        minecraft: str | None = None,
        obs: Literal["pixels", "dict"] = "pixels",
        actions: str = "dreamerv3",
        frame_skip: int = 4,
        sticky_attack: int | None = None,
        sticky_jump: int | None = None,
        pitch_limit: tuple[float, float] | Literal["table"] | None = "table",
        size: int = 64,
        max_ticks: int | None = None,
        step_timeout: float = 60.0,
        reset_timeout: float = 300.0,
        launch_timeout: float = 600.0,
        max_restarts: int = 3,
        restart_backoff: float = 2.0,
        minecraft_dir: str | None = None,
        standin_faults: str = "{}",
        render_mode: str | None = None,
    ) -> None:
        if name not in MINERL_IDS:
            raise ValueError(f"unknown task {name!r}: choose one of {', '.join(MINERL_IDS)}")
        if obs not in ("pixels", "dict"):
            raise ValueError(f"obs must be 'pixels' or 'dict', got {obs!r}")
        if frame_skip < 1 or size < 1 or max_restarts < 0:
            raise ValueError(
                "frame_skip and size must be at least 1 and max_restarts at least 0, "
                f"got {frame_skip}, {size} and {max_restarts}"
            )
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self._table = None if actions == "native" else find_table(actions)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a package of 2021 has reasons to warn
                from envs import minerl_client, minerl_instance
        except ImportError as error:
            raise MinecraftError(
                f"the minerl client is not installed ({error}); run: python -m envs.minerl_setup"
            ) from error
        self.name = name
        self.render_mode = render_mode
        self._fault: type[Exception] = minerl_client.MinecraftFault
        self._client = minerl_client.Client(minerl_client.find_spec(MINERL_IDS[name]))
        default = os.environ.get("WORLDSIM_MINECRAFT", "launch")
        if minecraft is None and default == "stand-in":
            raise ValueError(
                "WORLDSIM_MINECRAFT is 'stand-in', but results of the stand-in are to carry its "
                f"name: unset it, and take {name}-stand-in"
            )
        self._minecraft = minerl_instance.Minecraft(
            minecraft or default,
            minecraft_dir,
            launch_timeout,
            standin_faults,
        )
        self._obs = obs
        self._size = size
        self._frame_skip = frame_skip
        self._max_ticks = max_ticks or self._client.task.max_episode_steps
        self._step_timeout, self._reset_timeout = step_timeout, reset_timeout
        self._max_restarts, self._restart_backoff = max_restarts, restart_backoff
        self._make_spaces()
        self._player = self._make_player(sticky_attack, sticky_jump, pitch_limit)
        self.max_episode_steps = -(-self._max_ticks // frame_skip)
        self.metadata = {**self.metadata, "render_fps": TICKS_PER_SECOND / frame_skip}
        self._running = False  # an instance is there and has not failed
        self._faults: list[str] = []  # since the last episode that went well
        self._last: dict[str, Any] | None = None  # the client's last valid observation
        self._over = True
        self._ticks, self._steps, self._return = 0, 0, 0.0

    def _make_player(
        self,
        sticky_attack: int | None,
        sticky_jump: int | None,
        pitch_limit: tuple[float, float] | str | None,
    ) -> ActionPlayer:
        table = self._table
        if pitch_limit == "table":
            pitch_limit = table.pitch_limit if table is not None else None
        assert not isinstance(pitch_limit, str)
        if sticky_attack is None:
            sticky_attack = table.sticky_attack if table is not None else 0
        if sticky_jump is None:
            sticky_jump = table.sticky_jump if table is not None else 0
        noop = self._client.action_space.no_op()
        return ActionPlayer(noop, sticky_attack, sticky_jump, pitch_limit)

    def _make_spaces(self) -> None:
        theirs = self._client.observation_space.spaces
        pov = spaces.Box(0, 255, (self._size, self._size, 3), np.uint8)
        self.inventory_items: tuple[str, ...] = ()
        self.equipped_items: tuple[str, ...] = ()
        parts: dict[str, spaces.Space] = {"pov": pov}
        if "compass" in theirs:
            parts["compass"] = spaces.Box(-180.0, 180.0, (1,), np.float32)
        if "inventory" in theirs:
            self.inventory_items = tuple(theirs["inventory"].spaces)
            counts = (len(self.inventory_items),)
            parts["inventory"] = spaces.Box(0.0, 2304.0, counts, np.float32)
        if "equipped_items" in theirs:
            held = theirs["equipped_items"].spaces["mainhand"].spaces["type"]
            self.equipped_items = tuple(str(item) for item in held.values)
            parts["equipped"] = spaces.Box(0.0, 1.0, (len(self.equipped_items),), np.float32)
        self.observation_space = pov if self._obs == "pixels" else spaces.Dict(parts)

        self.action_items: dict[str, tuple[str, ...]] = {}
        if self._table is not None:
            self.action_space = spaces.Discrete(len(self._table))
            return
        verbs: dict[str, spaces.Space] = {}
        for verb, space in self._client.action_space.spaces.items():
            if verb == "ESC":
                continue  # ends the mission in minerl 1.0; never pressed
            if verb == "camera":
                verbs[verb] = spaces.Box(-180.0, 180.0, (2,), np.float32)
            elif hasattr(space, "values"):
                items = sorted((str(item) for item in space.values), key=lambda x: x != "none")
                self.action_items[verb] = tuple(items)
                verbs[verb] = spaces.Discrete(len(items))
            else:
                verbs[verb] = spaces.Discrete(int(space.n))
        self.action_space = spaces.Dict(verbs)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the discrete actions; empty for native ones."""
        return () if self._table is None else self._table.action_names

    @property
    def minecraft(self) -> str:
        """Which Minecraft this env plays in: "launch", "stand-in", or an address."""
        return self._minecraft.kind

    @property
    def pids(self) -> list[int]:
        """Processes started for this env that are not ended yet."""
        return self._minecraft.pids

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new world, and a Minecraft if there is none.

        Args:
            seed: Decides the mission seeds of this and the following episodes.
            options: None.

        Returns:
            The first observation and `info`.

        Raises:
            MinecraftError: No instance could be started, or too many failed in a row.
        """
        super().reset(seed=seed)
        if self._running and self._steps:  # without a fault, though it may have been cut short
            self._faults = []
        mission_seed = int(self.np_random.integers(LARGEST_SEED))
        self._last = None
        while self._last is None:
            self._wait_after_faults()
            try:
                if not self._running:
                    self._client.detach()
                    self._client.attach(self._minecraft.start())
                    self._running = True
                self._last = self._client.start(mission_seed, self._reset_timeout)
            except self._fault as fault:
                self._note_fault(fault)
            except RuntimeError as error:
                raise MinecraftError(str(error)) from error
        self._player.reset()
        self._over = False
        self._ticks, self._steps, self._return = 0, 0, 0.0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play `frame_skip` ticks.

        Raises:
            ValueError: The action is not in the action space.
            gymnasium.error.ResetNeeded: There is no running episode.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        self._over = True  # until all replies are in: an interrupted step can not be taken up again
        reward, terminated, truncated, fault = 0.0, False, False, None
        for native in self._player.ticks(self._native(action), self._frame_skip):
            try:
                self._last, paid, done, _ = self._client.advance(native, self._step_timeout)
            except self._fault as error:
                self._note_fault(error)
                fault, truncated = str(error), True
                break
            self._ticks += 1
            reward += paid
            if done:
                # The mod says only that it is over; the clock shows whether that was the reason.
                late = self._ticks >= self._client.task.max_episode_steps - TIME_LIMIT_SLACK
                truncated = late and paid < 1
                terminated = not truncated
                break
            if self._ticks >= self._max_ticks:
                truncated = True
                break
        self._steps += 1
        self._return += reward
        self._over = terminated or truncated
        info = self._info()
        if fault is not None:
            info["fault"] = fault
        elif self._over:
            self._faults = []
        if self._over:
            info["episode_statistics"] = {
                "return": self._return,
                "steps": self._steps,
                "ticks": self._ticks,
            }
        return self._observe(), reward, terminated, truncated, info

    def _note_fault(self, fault: Exception) -> None:
        self._running = False
        self._faults.append(str(fault))

    def _wait_after_faults(self) -> None:
        """Wait before a restart, longer each time; give up after too many."""
        count = len(self._faults)
        if count > self._max_restarts:
            self._minecraft.stop()
            last, self._faults = self._faults[-1], []  # whoever resets again starts anew
            raise MinecraftError(
                f"Minecraft ({self._minecraft.kind}) failed {count} times in a row, last: {last}"
            )
        if count and not self._running:
            time.sleep(self._restart_backoff * 2 ** (count - 1))

    def _native(self, action: Any) -> dict[str, Any]:
        if self._table is not None:
            return dict(self._table.actions[int(action)][1])
        native: dict[str, Any] = {}
        for verb, value in action.items():
            if verb in self.action_items:
                native[verb] = self.action_items[verb][int(value)]
            else:
                native[verb] = value if verb == "camera" else int(value)
        return native

    def _pov(self) -> np.ndarray:
        assert self._last is not None
        pov = np.ascontiguousarray(self._last["pov"][..., :3])  # the client's is flipped by strides
        if pov.shape[:2] == (self._size, self._size):
            return pov
        import cv2

        return np.asarray(cv2.resize(pov, (self._size, self._size), interpolation=cv2.INTER_AREA))

    def _observe(self) -> Any:
        if self._obs == "pixels":
            return self._pov()
        assert self._last is not None
        observation: dict[str, np.ndarray] = {"pov": self._pov()}
        if "compass" in self._last:
            angle = float(self._last["compass"]["angle"])
            observation["compass"] = np.clip([angle], -180, 180).astype(np.float32)
        if self.inventory_items:
            counts = [float(self._last["inventory"][item]) for item in self.inventory_items]
            observation["inventory"] = np.clip(counts, 0, 2304).astype(np.float32)
        if self.equipped_items:
            held = str(self._last["equipped_items"]["mainhand"]["type"])
            one_hot = [float(item == held) for item in self.equipped_items]
            observation["equipped"] = np.array(one_hot, np.float32)
        return observation

    def _info(self) -> dict[str, Any]:
        assert self._last is not None
        info: dict[str, Any] = {"ticks": self._ticks}
        if "compass" in self._last:
            info["compass_angle"] = float(self._last["compass"]["angle"])
        return info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The view at the game's own resolution, uint8 (h, w, 3)."""
        if self.render_mode is None:
            return None
        if self._last is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        return np.ascontiguousarray(self._last["pov"][..., :3])

    def close(self) -> None:
        """End the Minecraft that was started for this env; a later reset starts another."""
        self._client.detach()
        self._minecraft.stop()
        self._running = False
        self._over = True
