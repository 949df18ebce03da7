"""Settings: documented, bounded, and read from the environment and the command line alike."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from engine import EngineConfig
from server.cli import ENVIRONMENT_ONLY, check_model_exists
from server.settings import ENGINE_SETTINGS, SettingError, Settings, parse, read_settings, variable

ROOT = Path(__file__).parents[2]
NAMES = [each.name for each in fields(Settings)]


def test_every_setting_is_documented() -> None:
    rows = [line for line in (ROOT / "docs" / "settings.md").read_text().splitlines() if line.startswith("| `CAIRN_")]
    documented = {row.split("`")[1]: row for row in rows}
    assert documented.keys() == {variable(name) for name in NAMES}
    for each in fields(Settings):
        row = documented[variable(each.name)]
        assert ("--" + each.name.replace("_", "-") in row) == (each.name not in ENVIRONMENT_ONLY), each.name
        if isinstance(each.default, int | float | str) and not isinstance(each.default, bool):
            assert f"| {each.default} |" in row.replace("`", ""), f"{each.name}: the default is not told"


def test_every_engine_setting_is_handed_on() -> None:
    assert {*ENGINE_SETTINGS, "kv_bytes"} == {each.name for each in fields(EngineConfig)}
    defaults = EngineConfig()
    for name in ENGINE_SETTINGS:
        assert getattr(Settings(), name) == getattr(defaults, name), name


def test_the_environment_is_read() -> None:
    told = {"CAIRN_PORT": "9", "CAIRN_API_KEYS": " a, b,", "CAIRN_PREFIX_CACHE": "off", "CAIRN_KV_BYTES": "", "X": "1"}
    settings = read_settings({}, told)
    assert (settings.port, settings.api_keys, settings.prefix_cache, settings.kv_bytes) == (9, ("a", "b"), False, None)


def test_the_command_line_wins() -> None:
    assert read_settings({"port": 10}, {"CAIRN_PORT": "9"}).port == 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "eighty"),
        ("port", "65536"),
        ("port", "-1"),
        ("prefix_cache", "maybe"),
        ("keepalive_seconds", "nan"),
        ("keepalive_seconds", "0"),
        ("max_running", "0"),
        ("max_body_bytes", "1.5"),
        ("log_level", "loud"),
    ],
)
def test_a_wrong_value_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=name):
        Settings(**{name: parse(name, text)})


def test_the_served_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert Settings(model="models/cairn-4m/").model_name == "cairn-4m"
    assert Settings(model="organisation/model").model_name == "organisation/model"
    assert Settings(model="x", served_model_name="y").model_name == "y"


@pytest.mark.parametrize("model", ["/no/such/folder", "models/none", "none", "./org/name", str(ROOT)])
def test_a_folder_that_is_no_model_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SettingError, match="model"):
        check_model_exists(model)


def test_a_hub_name_is_left_to_the_loader() -> None:
    check_model_exists("some-organisation/some-model")
    check_model_exists(str(ROOT / "models" / "cairn-4m"))
