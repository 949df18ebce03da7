"""Settings: documented, bounded, and read from the environment and the command line alike."""

from __future__ import annotations

import socket
from dataclasses import fields
from pathlib import Path

import pytest

from engine import EngineConfig
from server.cli import check_address, check_model_exists, main
from server.serve_arguments import ENVIRONMENT_ONLY, GROUPS
from server.settings import ENGINE_SETTINGS, SettingError, Settings, parse, read_settings, sized, variable

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
    assert set(ENGINE_SETTINGS) == {each.name for each in fields(EngineConfig)}
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


@pytest.mark.parametrize(
    ("number", "told"), [(64 << 20, "64 MiB"), (1 << 30, "1 GiB"), (1536 << 10, "1536 KiB"), (17, "17 bytes")]
)
def test_bytes_are_told_as_they_may_be_given(number: int, told: str) -> None:
    assert sized(number) == told
    assert parse("max_body_bytes", told.removesuffix(" bytes")) == number


def test_an_address_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=f"another program listens on 127.0.0.1:{port}"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    check_address("localhost", 0)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(SettingError, match=host):
        check_address(host, 0)


def test_help_tells_every_setting_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    for name in NAMES:
        assert (f"--{name.replace('_', '-')} " in told) == (name not in ENVIRONMENT_ONLY), name
    assert "--max-body-bytes BYTES" in told
    assert "(default: 64 MiB)" in " ".join(told.split())
    assert len(told.split("\n\n")[0].splitlines()) == 1  # the usage is no wall of options
    assert {*NAMES} >= {name for names in GROUPS.values() for name in names.split()} - {"device"}


def test_a_wrong_option_is_told_by_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--nonsense", "1"])
    assert ended.value.code == 2
    assert "cairn serve: error: unrecognized arguments: --nonsense" in capsys.readouterr().err
