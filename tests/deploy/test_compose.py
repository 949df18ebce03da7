"""docker-compose.yml and the files that it hands to Prometheus and Grafana."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").rglob("*.yml"))]
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")


def load(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


COMPOSE = load("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts(service: str) -> list[list[str]]:
    """[source, target, mode] of each volume."""
    return [volume.split(":") for volume in SERVICES[service].get("volumes", [])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_image_is_called_by_the_version_that_it_holds() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert SERVICES["cairn"]["image"] == f"cairn:{version}"


def test_the_three_services() -> None:
    assert set(SERVICES) == {"cairn", "prometheus", "grafana"}
    assert (ROOT / SERVICES["cairn"]["build"] / "Dockerfile").is_file()


@pytest.mark.parametrize("service", SERVICES)
class TestService:
    def test_image_is_pinned(self, service: str) -> None:
        assert PINNED.fullmatch(SERVICES[service]["image"])

    def test_ports_are_of_this_machine_only(self, service: str) -> None:
        assert SERVICES[service]["ports"]
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])

    def test_mounts_exist_and_are_read_only(self, service: str) -> None:
        for source, *rest in mounts(service):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert rest[-1] == "ro", source
            else:
                assert source in COMPOSE["volumes"]

    def test_configs_are_declared(self, service: str) -> None:
        for config in SERVICES[service].get("configs", []):
            assert config["source"] in COMPOSE["configs"]

    def test_what_it_waits_for_can_become_healthy(self, service: str) -> None:
        waits = SERVICES[service].get("depends_on", [])
        for other in waits:
            assert other in SERVICES
            if isinstance(waits, dict) and waits[other]["condition"] == "service_healthy":
                assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"

    def test_it_holds_no_secret(self, service: str) -> None:
        environment = SERVICES[service].get("environment", [])
        names = environment if isinstance(environment, dict) else [entry for entry in environment if "=" in entry]
        assert not [name for name in names if re.search("PASSWORD|SECRET|TOKEN|KEY", name)]


def test_prometheus_scrapes_the_server_with_its_key() -> None:
    (job,) = load("deploy/prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    assert job["metrics_path"] == "/metrics"
    (config,) = SERVICES["prometheus"]["configs"]
    assert job["authorization"]["credentials_file"] == config["target"]


def test_grafana_reads_prometheus() -> None:
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    assert source["type"] == "prometheus"
    assert not source["editable"]


def test_grafana_finds_the_dashboard() -> None:
    (provider,) = load("deploy/grafana/provisioning/dashboards/cairn.yml")["providers"]
    folders = {target: ROOT / source for source, target, *_ in mounts("grafana")}
    folder = folders[provider["options"]["path"]]
    assert [path.name for path in folder.iterdir()] == ["cairn.json"]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folders[str(home.parent)] / home.name).is_file()
