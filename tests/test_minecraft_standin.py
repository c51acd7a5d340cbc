"""The stand-in Minecraft by itself: its world, its camera and its protocol."""

import math
import socket
import struct
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from envs.minecraft_mission import ItemReward, Mission, MissionSpec, parse_commands, parse_mission
from envs.minecraft_standin import HELLO, StandInMinecraft
from envs.voxel_render import VoxelRenderer, draw_compass
from envs.voxel_world import (
    AIR,
    BEDROCK,
    DIAMOND,
    DIRT,
    GRASS,
    HALF_WIDTH,
    LOG,
    STONE,
    Commands,
    Player,
    VoxelWorld,
    WorldConfig,
)

FLAT = WorldConfig(side=40, amplitude=0.0, tree_density=0.0)
GROUND = 5.0  # where the feet are in a flat world

MISSION = """<MissionInit xmlns="http://ProjectMalmo.microsoft.com"><Mission>
  <ServerSection><ServerHandlers>
    <NavigationDecorator><randomPlacementProperties>
      <maxRandomizedRadius>20</maxRandomizedRadius></randomPlacementProperties>
      <maxRandomizedDistance>3</maxRandomizedDistance></NavigationDecorator>
    <ServerQuitFromTimeUp timeLimitMs="2000"/>
  </ServerHandlers></ServerSection>
  <AgentSection><AgentStart><Inventory>
    <InventoryObject slot="0" type="compass" quantity="1"/></Inventory></AgentStart>
  <AgentHandlers>
    <VideoProducer><Width>32 </Width><Height>24</Height></VideoProducer>
    <RewardForTouchingBlockType><Block reward="100.0" type="diamond_block"/>
    </RewardForTouchingBlockType>
    <RewardForDistanceTraveledToCompassTarget rewardPerBlock="2.0"/>
    <AgentQuitFromTouchingBlockType><Block type="diamond_block"/></AgentQuitFromTouchingBlockType>
  </AgentHandlers></AgentSection></Mission></MissionInit>"""


def flat_player(yaw: float = 0.0, **inventory: int) -> Player:
    return Player(VoxelWorld(0, FLAT), 20, 20, yaw, inventory)


def walk(player: Player, ticks: int, **keys: bool) -> list[float]:
    for _ in range(ticks):
        player.tick(Commands(**keys))
    return list(player.position)


def test_world_is_decided_by_its_seed() -> None:
    first, again, other = VoxelWorld(7), VoxelWorld(7), VoxelWorld(8)
    np.testing.assert_array_equal(first.blocks, again.blocks)
    assert (first.blocks != other.blocks).any()
    assert (first.blocks == LOG).any() and (first.blocks == GRASS).any()
    assert (first.blocks[:-1, 0] == BEDROCK).all()


@pytest.mark.parametrize(
    ("keys", "blocks_per_second"),
    [({}, 4.317), ({"sprint": True}, 5.612), ({"sneak": True}, 1.295)],
)
def test_speeds_are_those_of_the_game(keys: dict[str, bool], blocks_per_second: float) -> None:
    player = flat_player()
    before = walk(player, 40, forward=True, **keys)
    after = walk(player, 20, forward=True, **keys)
    assert after[2] - before[2] == pytest.approx(blocks_per_second, rel=0.01)
    assert after[0] == 20.5 and after[1] == pytest.approx(GROUND, abs=1e-3)


@pytest.mark.parametrize(
    ("yaw", "key", "axis", "sign"),
    [
        (0, "forward", 2, 1),
        (90, "forward", 0, -1),
        (180, "forward", 2, -1),
        (-90, "forward", 0, 1),
        (0, "right", 0, -1),
        (0, "left", 0, 1),
        (0, "back", 2, -1),
    ],
)
def test_directions_are_those_of_the_game(yaw: float, key: str, axis: int, sign: int) -> None:
    player = flat_player(yaw)
    start = list(player.position)
    moved = np.array(walk(player, 10, **{key: True})) - start
    assert np.sign(moved[axis]) == sign
    assert abs(moved[2 - axis]) < 1e-6


def test_a_jump_is_one_and_a_quarter_blocks_high() -> None:
    player = flat_player()
    heights = [walk(player, 1, jump=t == 0)[1] - GROUND for t in range(15)]
    assert max(heights) == pytest.approx(1.25, abs=0.01)
    assert heights[-1] == pytest.approx(0, abs=1e-3)


def test_walls_stop_and_steps_need_a_jump() -> None:
    player = flat_player()
    player.world.blocks[5, 24] = STONE  # one block high, across the way
    assert walk(player, 60, forward=True)[2] == pytest.approx(24 - HALF_WIDTH, abs=1e-3)
    assert walk(player, 30, forward=True, jump=True)[2] > 24.5
    player.world.blocks[5:8, 30] = STONE
    assert walk(player, 200, forward=True, jump=True)[2] < 30


def test_nobody_gets_into_a_block_or_out_of_the_world() -> None:
    rng = np.random.default_rng(0)
    world = VoxelWorld(3, WorldConfig(side=48, amplitude=9.0, tree_density=0.05))
    player = Player(world, 24, 24, 0.0, {"dirt": 99})
    world.clear(24, 24)
    for _ in range(3000):
        keys = {k: bool(rng.random() < 0.6) for k in ("forward", "jump", "sprint", "attack")}
        turn = (float(rng.normal(0, 9)), float(rng.normal(0, 25)))
        place = "dirt" if rng.random() < 0.2 else "none"
        player.tick(Commands(camera=turn, place=place, **keys))
        assert not player._collides()
        assert 0 < player.position[0] < 48 and 0 < player.position[2] < 48
        assert player.position[1] > 0


def test_breaking_and_placing_move_one_block_each() -> None:
    player = flat_player()
    player.pitch = 60.0
    block, _ = player.look_at()
    x, y, z = block
    walk(player, 17, attack=True)
    assert player.world.blocks[y, z, x] == GRASS and not player.inventory
    walk(player, 1, attack=True)
    assert player.world.blocks[y, z, x] == AIR and player.inventory == {"dirt": 1}
    player.tick(Commands(place="dirt"))
    assert (player.world.blocks == DIRT).sum() and player.inventory == {"dirt": 0}
    before = player.world.blocks.copy()
    player.tick(Commands(place="dirt"))  # none left
    np.testing.assert_array_equal(player.world.blocks, before)


def test_camera_shows_what_is_ahead() -> None:
    world = VoxelWorld(0, FLAT)
    renderer = VoxelRenderer(33, 33)
    eye = (20.5, GROUND + 1.62, 20.5)
    world.blocks[int(eye[1]), 24, 20] = DIAMOND  # straight ahead for yaw 0

    def middle(yaw: float, pitch: float = 0.0) -> np.ndarray:
        return renderer.render(world, eye, yaw, pitch)[16, 16].astype(int)

    red, green, blue = middle(0)
    assert green > red + 60 and blue > red + 60
    assert np.abs(middle(180) - middle(0)).max() > 40
    red, green, blue = middle(180, 60.0)
    assert green > max(red, blue) + 20, "grass below"
    red, green, blue = middle(180, -60.0)
    assert blue > green > red, "sky above"
    # Something to the right of the view direction is on the right of the picture.
    world.blocks[int(eye[1]), 24, 20] = AIR
    world.blocks[int(eye[1]), 24, 18] = DIAMOND
    frame = renderer.render(world, eye, 0.0, 0.0).astype(int)
    bluish = (frame[..., 1] > frame[..., 0] + 60) & (frame[16, :, 2] > frame[16, :, 0] + 60)
    assert np.nonzero(bluish[16])[0].min() > 16


def test_every_pixel_agrees_with_a_slow_ray() -> None:
    world = VoxelWorld(5, WorldConfig(side=48, amplitude=6.0, tree_density=0.05))
    player = Player(world, 24, 24, 35.0, {})
    world.clear(24, 24)
    renderer = VoxelRenderer(16, 16)
    directions = renderer._directions(35.0, 10.0)
    blocks, distances, _ = renderer._trace(world, player.eye, directions)
    for ray in range(0, 256, 5):
        d = directions[:, ray].astype(float)
        for t in np.arange(0.0, distances[ray] - 2e-3, 2e-3):
            x, y, z = (int(v) for v in np.floor(player.eye + d * t))
            assert world.blocks[y, z, x] == AIR
        if distances[ray] < 40:
            x, y, z = (int(v) for v in np.floor(player.eye + d * (distances[ray] + 1e-3)))
            assert world.blocks[y, z, x] == blocks[ray]


@pytest.mark.parametrize(("angle", "half"), [(90, "right"), (-90, "left")])
def test_compass_needle_points_to_the_target(angle: float, half: str) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    draw_compass(frame, angle)
    _, columns = np.nonzero((frame == (220, 30, 30)).all(-1))
    disk = np.nonzero(frame.any(-1))[1]
    assert (columns.mean() > disk.mean()) == (half == "right")


def test_mission_reads_what_the_xml_asks_for() -> None:
    spec = parse_mission(MISSION)
    assert (spec.width, spec.height, spec.max_ticks) == (32, 24, 40)
    assert spec.inventory == {"compass": 1}
    assert (spec.target_radius, spec.compass_offset) == (20, 3)
    assert (spec.touch_reward, spec.distance_reward, spec.quit_on_touch) == (100, 2, True)
    with pytest.raises(ValueError, match="not XML"):
        parse_mission("<MissionInit>")
    with pytest.raises(ValueError, match="no <Mission>"):
        parse_mission(ElementTree.tostring(ElementTree.Element("MissionInit")).decode())


def test_compass_and_dense_reward_agree_with_geometry() -> None:
    mission = Mission(parse_mission(MISSION), seed=3)
    start = math.dist(mission.player.position, mission.compass_target)
    total = sum(mission.tick("forward 1\ncamera 0.0 7.5") for _ in range(25))
    end = math.dist(mission.player.position, mission.compass_target)
    assert total == pytest.approx(2.0 * (start - end))
    mission.player.yaw += mission.compass_angle  # turn to where the needle points
    toward = np.array(mission.compass_target) - mission.player.position
    direction = np.array(mission.player.direction)
    toward[1] = direction[1] = 0
    cosine = toward @ direction / np.linalg.norm(toward) / np.linalg.norm(direction)
    assert cosine == pytest.approx(1.0)


def test_target_is_paid_once_and_ends_the_mission() -> None:
    mission = Mission(parse_mission(MISSION), seed=3)
    x, y, z = mission.target
    mission.player.position = [x + 0.5, y + 1.001, z + 0.5]
    mission._distance = mission._target_distance()
    assert mission.tick("") == pytest.approx(100.0, abs=0.1) and mission.done


def test_time_is_up() -> None:
    mission = Mission(parse_mission(MISSION), seed=0)
    ends = []
    while not mission.done:
        mission.tick("noop")
        ends.append(mission.done)
    assert len(ends) == 40


def test_items_are_paid_once_or_every_time() -> None:
    def totals(once: bool) -> list[float]:
        spec = MissionSpec(item_rewards=(ItemReward("log", 3.0, once),))
        mission = Mission(spec, seed=0)
        rewards = []
        for count in (1, 1, 3, 0, 3):
            mission.player.inventory["log"] = count
            rewards.append(mission._reward())
        return rewards

    assert totals(once=True) == [3, 0, 0, 0, 0]
    assert totals(once=False) == [3, 0, 6, 0, 0]


@pytest.mark.parametrize("line", ["camera 1", "camera a b", "camera nan 0", "forward x"])
def test_malformed_commands_are_refused(line: str) -> None:
    with pytest.raises(ValueError):
        parse_commands(line)


def talk(port: int, *messages: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    for message in messages:
        connection.sendall(struct.pack("!I", len(message)) + message.encode())
    return connection


def hear(connection: socket.socket) -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    return exactly(struct.unpack("!I", exactly(4))[0])


def test_protocol_byte_by_byte() -> None:
    server = StandInMinecraft().start()
    one, zero = struct.pack("!I", 1), struct.pack("!I", 0)
    with talk(server.port, HELLO, "<Quit/>", MISSION, "uid:0:0:1:true:5", "<Peek/>") as client:
        assert hear(client) == one and hear(client) == one
        frame = hear(client)
        assert len(frame) == 32 * 24 * 3
        assert b"compassAngle" in hear(client) and hear(client) == b"\0"
        for message in ("<StepClient0>forward 1</StepClient0 >", "<StepServer></StepServer>"):
            client.sendall(struct.pack("!I", len(message)) + message.encode())
        assert len(hear(client)) == len(frame)
        reward, done, sent = struct.unpack("!dbb", hear(client))
        assert (done, sent) == (0, 1) and math.isfinite(reward)
        assert b"inventory" in hear(client)
        client.sendall(struct.pack("!I", 7) + b"<Quit/>")
        assert hear(client) == zero, "there was a mission to quit"
    pixels = np.frombuffer(frame, np.uint8).reshape(24, 32, 3).astype(int)
    assert pixels[-1, :, 2].mean() > pixels[0, :, 2].mean(), "bottom row first, the sky last"
    server.stop()


@pytest.mark.parametrize("hello", ["<MalmoEnv0.36.0/>", "GET / HTTP/1.1"])
def test_strangers_are_hung_up_on(hello: str) -> None:
    server = StandInMinecraft().start()
    with talk(server.port, hello, "<Peek/>") as client, pytest.raises((EOFError, ConnectionError)):
        hear(client)
    server.stop()
