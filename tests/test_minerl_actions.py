"""Action tables of MineRL, and the setup command; neither needs the client."""

import numpy as np
import pytest

from envs import minerl_setup
from envs.minerl_actions import TABLES, ActionPlayer, ActionTable, find_table

NOOP = {"attack": 0, "forward": 0, "jump": 0, "camera": np.zeros(2, np.float32), "place": "none"}


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_entry_is_its_own_nearest(table: ActionTable) -> None:
    indices, mapped = table.nearest([action for _, action in table.actions])
    np.testing.assert_array_equal(indices, np.arange(len(table)))
    assert mapped.all()
    assert len(set(table.action_names)) == len(table)


def test_sizes_are_those_of_the_literature() -> None:
    assert {name: len(table) for name, table in TABLES.items()} == {
        "baselines": 7,
        "dreamerv3": 12,
        "combined": 30,
    }
    with pytest.raises(ValueError, match="baselines, dreamerv3, combined"):
        find_table("vpt")


def test_nearest_action_and_what_does_not_map() -> None:
    table = find_table("dreamerv3")
    recorded = [
        ({"forward": 1, "sprint": 1}, "forward", True),  # sprinting is not worth a mismatch
        ({"forward": 1, "camera": (0.0, 3.0)}, "forward", True),  # nor is a small turn
        ({"forward": 1, "camera": (0.0, 14.0)}, "turn-right", False),
        ({"camera": (-40.0, 0.0)}, "turn-up", False),  # further than one step turns
        ({"camera": (12.0, 0.0)}, "turn-down", True),
        ({"attack": 1, "forward": 1}, "attack", False),
        ({"place": "dirt"}, "place-dirt", True),
        ({"sneak": 1}, "noop", True),
        ({"left": 1, "right": 1}, "left", False),
    ]
    indices, mapped = table.nearest([action for action, _, _ in recorded])
    assert [table.action_names[i] for i in indices] == [name for _, name, _ in recorded]
    assert mapped.tolist() == [ok for _, _, ok in recorded]
    assert find_table("combined").nearest([{"attack": 1, "forward": 1}])[1].all()


def test_turns_happen_once_and_keys_are_held() -> None:
    player = ActionPlayer(NOOP)
    action = {"forward": 1, "camera": (5.0, 15.0), "place": "dirt", "swim": 1}
    ticks = player.ticks(action, 3)
    assert [tick["forward"] for tick in ticks] == [1, 1, 1]
    assert [tick["camera"].tolist() for tick in ticks] == [[5, 15], [0, 0], [0, 0]]
    assert [tick["place"] for tick in ticks] == ["dirt", "none", "none"]
    assert all(set(tick) == set(NOOP) for tick in ticks)


def test_sticky_keys_last_and_reset_forgets_them() -> None:
    player = ActionPlayer(NOOP, sticky_attack=3, sticky_jump=2)
    ticks = player.ticks({"attack": 1}, 1) + player.ticks({}, 4)
    assert [tick["attack"] for tick in ticks] == [1, 1, 1, 0, 0]
    ticks = player.ticks({"jump": 1}, 1) + player.ticks({}, 3)
    assert [(tick["jump"], tick["forward"]) for tick in ticks] == [(1, 1), (1, 1), (0, 0), (0, 0)]
    player.ticks({"attack": 1}, 1)
    player.reset()
    assert player.ticks({}, 1)[0]["attack"] == 0


def test_pitch_stays_within_its_limits() -> None:
    player = ActionPlayer(NOOP, pitch_limit=(-60.0, 60.0))
    turned = [player.ticks({"camera": (25.0, 1.0)}, 1)[0]["camera"].tolist() for _ in range(4)]
    assert turned == [[25, 1], [25, 1], [0, 1], [0, 1]]
    assert player.pitch == 50
    player.reset()
    assert player.pitch == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "1.8.0_392"\nOpenJDK Runtime Environment', 8),
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "9"', 9),
        ("command not found", None),
    ],
)
def test_java_version(text: str, version: int | None) -> None:
    assert minerl_setup.parse_java_version(text) == version


def test_missing_java_display_and_mod_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MINERL_HEADLESS", raising=False)
    problems = " ".join(minerl_setup.missing_for_minecraft())
    for word in ("no Java", "JDK 8", "no display", "xvfb", "--real"):
        assert word in problems
    monkeypatch.setattr(minerl_setup, "java_version", lambda: 17)
    assert "Java is version 17" in minerl_setup.missing_for_minecraft()[0]


def test_setup_installs_in_the_order_that_works() -> None:
    dependencies, gym, minerl = (" ".join(c) for c in minerl_setup.install_commands())
    assert "lxml" in dependencies and "--no-deps" not in dependencies
    assert gym.endswith("--no-deps gym==0.17.3") and minerl.endswith("--no-deps minerl==0.4.4")
    assert minerl_setup.PATCHED_WHEEL in minerl_setup.install_commands(real=True)[-1]


def test_setup_reports_without_installing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("--check must not install")

    monkeypatch.setattr(minerl_setup, "install", refuse)
    monkeypatch.setattr(minerl_setup, "is_installed", lambda: False)
    minerl_setup.main(["--check"])
    assert "python -m envs.minerl_setup" in capsys.readouterr().out


def test_failed_installation_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minerl_setup, "is_installed", lambda: False)
    monkeypatch.setattr(minerl_setup, "install_commands", lambda real: [["-c", "exit(3)"]])
    with pytest.raises(SystemExit, match="this failed"):
        minerl_setup.main([])


def test_env_without_the_client_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from envs.minerl import MinecraftError, MineRLEnv

    for name in list(sys.modules):
        if name.split(".")[0] == "minerl" or name in ("envs.minerl_client", "envs.minerl_instance"):
            monkeypatch.delitem(sys.modules, name)
    import envs

    for name in ("minerl_client", "minerl_instance"):
        monkeypatch.delattr(envs, name, raising=False)
    monkeypatch.setitem(sys.modules, "minerl", None)
    with pytest.raises(MinecraftError, match=r"python -m envs\.minerl_setup"):
        MineRLEnv()
