"""The missions of the stand-in Minecraft: what a MineRL mission XML asks for, in a voxel world.

Reads from the XML what the real mod would: resolution, start inventory, NavigationDecorator, the
reward and quit handlers and the time limit; plays it in `envs.voxel_world`. Navigate and Treechop
run by the rules of their tasks. Left out: mobs, hunger, damage, crafting, smelting and equipping,
so the Obtain tasks start but can not be solved. Nothing that comes from here is a result on
Minecraft.
"""

import dataclasses
import json
import math
import random
import xml.etree.ElementTree as ElementTree

from envs.voxel_render import VoxelRenderer, draw_compass
from envs.voxel_world import DIAMOND, Commands, Player, VoxelWorld, WorldConfig

MS_PER_TICK = 50
HELD_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")
PLAIN = WorldConfig()
EXTREME_HILLS = WorldConfig(amplitude=11.0, tree_density=0.004)
FOREST = WorldConfig(side=112, amplitude=3.0, tree_density=0.05)


@dataclasses.dataclass(frozen=True)
class ItemReward:
    """RewardForPossessingItem: `amount` each time a new maximum is reached, or once if sparse."""

    item: str
    reward: float
    once: bool


@dataclasses.dataclass
class MissionSpec:
    """The part of a mission XML that the stand-in acts on."""

    width: int = 64
    height: int = 64
    max_ticks: int = 0
    """0 means no limit."""
    world: WorldConfig = PLAIN
    inventory: dict[str, int] = dataclasses.field(default_factory=dict)
    target_radius: float | None = None
    """Distance from the start to the diamond block, or None if the mission has no target."""
    compass_offset: float = 0.0
    """Largest distance along x and z between the compass target and the diamond block."""
    touch_reward: float = 0.0
    distance_reward: float = 0.0
    item_rewards: tuple[ItemReward, ...] = ()
    quit_on_touch: bool = False
    quit_on_items: dict[str, int] = dataclasses.field(default_factory=dict)


def parse_mission(xml: str) -> MissionSpec:
    """Read a `<MissionInit>` document.

    Args:
        xml: The text that the MineRL client sends.

    Raises:
        ValueError: It is not XML or has no mission inside.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"the mission is not XML: {error}") from error
    if root.find("{*}Mission") is None:
        raise ValueError(f"no <Mission> in <{root.tag}>")

    def number(path: str, default: float) -> float:
        text = root.findtext(f".//{path}")
        return default if text is None else float(text)

    spec = MissionSpec(width=int(number("{*}Width", 64)), height=int(number("{*}Height", 64)))
    time_up = root.find(".//{*}ServerQuitFromTimeUp")
    if time_up is not None:
        spec.max_ticks = int(float(time_up.get("timeLimitMs", "0")) / MS_PER_TICK)
    for item in root.iterfind(".//{*}InventoryObject"):
        kind, amount = item.get("type", ""), int(float(item.get("quantity", "1")))
        spec.inventory[kind] = spec.inventory.get(kind, 0) + amount
    if root.find(".//{*}BiomeGenerator") is not None:
        spec.world = EXTREME_HILLS
    elif "log" in {item.get("type") for item in root.iterfind(".//{*}Item")}:
        spec.world = FOREST
    if root.find(".//{*}NavigationDecorator") is not None:
        spec.target_radius = number("{*}maxRandomizedRadius", 64)
        spec.compass_offset = number("{*}maxRandomizedDistance", 0)
    touch = root.find(".//{*}RewardForTouchingBlockType/{*}Block")
    spec.touch_reward = 0.0 if touch is None else float(touch.get("reward", "0"))
    distance = root.find(".//{*}RewardForDistanceTraveledToCompassTarget")
    spec.distance_reward = 0.0 if distance is None else float(distance.get("rewardPerBlock", "0"))
    items = root.find(".//{*}RewardForPossessingItem")
    if items is not None:
        once = items.get("sparse") == "true"
        spec.item_rewards = tuple(
            ItemReward(item.get("type", ""), float(item.get("reward", "0")), once) for item in items
        )
    spec.quit_on_touch = root.find(".//{*}AgentQuitFromTouchingBlockType") is not None
    for item in root.iterfind(".//{*}AgentQuitFromPossessingItem/{*}Item"):
        spec.quit_on_items[item.get("type", "")] = int(float(item.get("amount", "1")))
    return spec


class Mission:
    """One running episode.

    Args:
        spec: What is asked for.
        seed: Decides the world, the start direction and the target; None draws one.
    """

    def __init__(self, spec: MissionSpec, seed: int | None = None) -> None:
        self.spec = spec
        self.seed = random.SystemRandom().getrandbits(31) if seed is None else seed
        chance = random.Random(self.seed)
        self.world = VoxelWorld(self.seed, spec.world)
        middle = spec.world.side // 2
        self.world.clear(middle, middle)
        self.player = Player(self.world, middle, middle, chance.uniform(-180, 180), spec.inventory)
        self.target: tuple[int, int, int] | None = None
        self.compass_target: tuple[float, float, float] | None = None
        if spec.target_radius is not None:
            self._place_target(chance, middle, spec.target_radius)
        self.ticks = 0
        self.done = False
        self._touched = False
        self._best = dict(self.player.inventory)
        self._distance = self._target_distance()
        self._renderer = VoxelRenderer(spec.width, spec.height)

    def _place_target(self, chance: random.Random, middle: int, radius: float) -> None:
        """Put the diamond block into the surface at `radius`, and the compass target near it."""
        along = (chance.random() - 0.5) * 2 * radius
        across = math.copysign(math.sqrt(radius**2 - along**2), chance.random() - 0.5)
        limit = self.spec.world.side - 6
        x = min(limit, max(5, int(middle + along)))
        z = min(limit, max(5, int(middle + across)))
        self.world.clear(x, z)
        y = int(self.world.surface[z, x])
        self.world.blocks[y, z, x] = DIAMOND
        self.target = (x, y, z)
        offset = self.spec.compass_offset
        self.compass_target = (x + chance.uniform(-offset, offset), y,
                               z + chance.uniform(-offset, offset))  # fmt: skip

    def _target_distance(self) -> float:
        if self.compass_target is None:
            return 0.0
        return math.dist(self.player.position, self.compass_target)

    @property
    def compass_angle(self) -> float:
        """Degrees from the view direction to the compass target, in [-180, 180), right positive."""
        if self.compass_target is None:
            return 0.0
        x, _, z = self.player.position
        bearing = math.degrees(math.atan2(x - self.compass_target[0], self.compass_target[2] - z))
        return (bearing - self.player.yaw + 180.0) % 360.0 - 180.0

    def tick(self, commands: str) -> float:
        """Play 1/20 s.

        Args:
            commands: Lines of the MineRL client, such as "forward 1" or "camera 0.0 15.0".

        Returns:
            The reward of this tick.

        Raises:
            ValueError: A command is malformed.
        """
        self.player.tick(parse_commands(commands))
        self.ticks += 1
        reward = self._reward()
        inventory = self.player.inventory
        self.done = (
            (self.spec.quit_on_touch and self._touched)
            or any(inventory.get(item, 0) >= n for item, n in self.spec.quit_on_items.items())
            or 0 < self.spec.max_ticks <= self.ticks
        )
        return reward

    def _reward(self) -> float:
        reward = 0.0
        if self.target is not None and not self._touched and self.player.touches(DIAMOND):
            self._touched = True
            reward += self.spec.touch_reward
        distance = self._target_distance()
        reward += self.spec.distance_reward * (self._distance - distance)
        self._distance = distance
        for rule in self.spec.item_rewards:
            count, best = self.player.inventory.get(rule.item, 0), self._best.get(rule.item, 0)
            if count > best:
                self._best[rule.item] = count
                reward += rule.reward * (int(best == 0) if rule.once else count - best)
        return reward

    def frame(self) -> bytes:
        """The view as the mod sends it: RGB, width x height x 3 bytes, bottom row first."""
        player = self.player
        pixels = self._renderer.render(self.world, player.eye, player.yaw, player.pitch)
        if "compass" in player.inventory:
            draw_compass(pixels, self.compass_angle)
        return pixels[::-1].tobytes()

    def info(self) -> str:
        """The observations besides the view, as the mod's JSON."""
        stacks = [
            {"type": item, "metadata": 0, "quantity": count, "index": i, "inventory": "inventory"}
            for i, (item, count) in enumerate(sorted(self.player.inventory.items()))
            if count > 0
        ]
        empty = {"type": "air", "metadata": 0, "quantity": 0, "inventory": "inventory"}
        stacks += [{**empty, "index": i} for i in range(len(stacks), 41)]
        held = "iron_axe" if self.player.inventory.get("iron_axe") else "air"
        observations: dict[str, object] = {
            "inventory": stacks,
            "equipped_items": {
                "mainhand": {"type": held, "metadata": 0, "damage": 0, "maxDamage": 0}
            },
        }
        if self.compass_target is not None:
            observations["compassAngle"] = self.compass_angle
            observations["distanceToCompassTarget"] = self._distance
        return json.dumps(observations)


def parse_commands(text: str) -> Commands:
    """Read the command lines of one step; verbs that the stand-in does not know have no effect.

    Raises:
        ValueError: A known verb has a malformed parameter.
    """
    commands = Commands()
    for line in text.splitlines():
        verb, _, parameter = line.strip().partition(" ")
        if verb in HELD_KEYS:
            setattr(commands, verb, float(parameter) != 0)
        elif verb == "camera":
            pitch, yaw = (float(part) for part in parameter.split())
            if not (math.isfinite(pitch) and math.isfinite(yaw)):
                raise ValueError(f"camera needs two finite angles, got {parameter!r}")
            commands.camera = (pitch, yaw)
        elif verb == "place":
            commands.place = parameter
    return commands
