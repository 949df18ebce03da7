"""Keys in a file: made and revoked by `cairn keys`, read again while the server runs, and each with its role."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import tenants
from server.cli import main
from server.keys import KeysError, hash_of, read_keys
from server.settings import Settings
from server.tenants import Tenants
from tests.engine.durable import eventually
from tests.server.test_durability import served


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "LOOK_SECONDS", 0.0)


def keys(file: Path, *arguments: str) -> int:
    action, *rest = arguments
    return main(["keys", action, "--keys-file", str(file), *rest])


def make(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert keys(file, "create", *arguments) == 0
    return capsys.readouterr().out.strip()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def status(client: httpx.Client, key: str, path: str = "/v1/sessions", method: str = "GET") -> int:
    return client.request(method, path, headers=bearer(key)).status_code


def test_the_file_holds_no_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = make(file, capsys, "acme", "--days", "30")
    assert key.startswith("cairn_")
    assert len(key) > 40, "256 bits"
    assert key not in file.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert keys(file, "list") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.split()[:4] == [hash_of(key.encode())[:12], "user", "acme", "until"]
    assert make(file, capsys, "acme") != key


def test_a_revoked_key_is_gone_and_others_stay(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make(file, capsys, "acme"), make(file, capsys, "acme")
    assert keys(file, "revoke", hash_of(first.encode())[:12]) == 0
    assert [key.sha256 for key in read_keys(file).keys] == [hash_of(second.encode())]
    assert keys(file, "revoke", "000000000000") == 2
    assert "there is no key 000000000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create",), "needs a tenant"),
        (("create", "acme", "--role", "admin"), "others have none"),
        (("create", "Bad Name"), "tenant: a name has up to 63 small letters"),
        (("limit", "acme", "--sessions", "-1"), "sessions: Input should be greater than or equal to 0"),
        (("list",), "No such file"),
        (("revoke", "000000000000"), "No such file"),
    ],
)
def test_what_cannot_be_is_said(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    assert keys(file, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "Invalid JSON"),
        ("[]", "the file: "),
        ('{"keys": [{"sha256": "abc", "tenant": "a"}]}', "keys.0.sha256: "),
        ('{"keys": [{"sha256": "%s"}]}' % ("0" * 64), "needs a tenant"),
        ('{"tenants": {"a": {"limits": {"sessions": -1}}}}', "tenants.a.limits.sessions: "),
        ('{"tenants": {"a": {"limit": {}}}}', "tenants.a.limit: "),
        ('{"tenants": {"%s": {}}}' % ("0" * 64), "tenants."),
        ('{"tenants": {"a": {"sessions_of": "%s"}, "b": {"sessions_of": "%s"}}}' % (("0" * 64,) * 2), "two tenants"),
        ('{"keys": [{"sha256": "%s", "tenant": "a"}, {"sha256": "%s", "tenant": "b"}]}' % (("0" * 64,) * 2), "twice"),
        ('{"keys": [{"sha256": "%s", "tenant": "a", "expires": "2030-01-01T00:00:00"}]}' % ("0" * 64), "timezone"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    file: Path, capsys: pytest.CaptureFixture[str], content: str, told: str
) -> None:
    file.write_text(content)
    with pytest.raises(KeysError, match="keys_file: ") as caught:
        read_keys(file)
    assert told in str(caught.value)
    assert "0" * 64 not in str(caught.value) or "tenants." in told
    assert main(["serve", "--keys-file", str(file)]) == 2
    assert capsys.readouterr().err.startswith("cairn: keys_file: ")


def test_limits_are_told_as_they_are_now(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(file, "limit", "acme", "--sessions", "2") == 0
    assert keys(file, "limit", "acme", "--tokens-per-minute", "0") == 0
    assert keys(file, "limit", "acme") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "acme: tokens-per-minute without limit, sessions 2"
    assert keys(file, "limit", "other") == 0
    assert capsys.readouterr().out == "other: the limits of the server\n"


def test_keys_come_and_go_while_the_server_runs(
    file: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(file, capsys, "acme")
    with served(tiny_folder, keys_file=str(file)) as client:
        assert status(client, first) == 200
        session = client.post("/v1/sessions", headers=bearer(first)).json()["id"]
        second, other = make(file, capsys, "acme"), make(file, capsys, "other")
        assert status(client, second, f"/v1/sessions/{session}") == 200, "a tenant's keys share its sessions"
        assert status(client, other, f"/v1/sessions/{session}") == 404
        keys(file, "revoke", hash_of(first.encode())[:12])
        assert (status(client, first), status(client, second)) == (401, 200)
        short = make(file, capsys, "acme", "--days", str(0.9 / 86400))  # rounded down to whole seconds
        eventually(lambda: status(client, short) == 401)
        for broken in ("{", None):
            if broken is None:
                file.unlink()
            else:
                file.write_text(broken)
            assert (status(client, second), status(client, first)) == (200, 401), "the keys stay as they were"
        file.write_text("{}")
        assert status(client, second) == 401, "a file without keys lets nobody in"


def test_keys_of_the_environment_keep_their_sessions(
    file: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"disk_kv_path": str(tmp_path / "store")}
    with served(tiny_folder, api_keys=("old-key",), **kept) as client:
        session = client.post("/v1/sessions", headers=bearer("old-key")).json()["id"]
    new = make(file, capsys, "new")
    with served(tiny_folder, api_keys=("old-key",), keys_file=str(file), **kept) as client:
        assert status(client, "old-key", f"/v1/sessions/{session}") == 200
        assert status(client, new, f"/v1/sessions/{session}") == 404
        monkeypatch.setattr("sys.stdin", io.StringIO("old-key\n"))
        assert make(file, capsys, "acme", "--adopt") == ""
        rotated = make(file, capsys, "acme")
        assert status(client, rotated, f"/v1/sessions/{session}") == 200, "before a restart as well"
    with served(tiny_folder, keys_file=str(file), **kept) as client:
        assert status(client, rotated, f"/v1/sessions/{session}") == 200
        assert status(client, "old-key", f"/v1/sessions/{session}") == 200
        monkeypatch.setattr("sys.stdin", io.StringIO("another-key\n"))
        assert keys(file, "create", "new", "--adopt") == 2, "it would hide the tenant's own sessions"


def test_each_role_has_its_routes(file: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = make(file, capsys, "acme")
    watcher, admin = (make(file, capsys, "--role", role) for role in ("metrics", "admin"))
    with served(tiny_folder, keys_file=str(file), api_keys=("old-key",)) as client:

        def statuses(path: str) -> list[int]:
            return [status(client, key, path) for key in ("wrong", user, "old-key", watcher, admin)]

        assert statuses("/v1/sessions") == [401, 200, 200, 403, 403]
        assert statuses("/metrics") == [401, 403, 200, 200, 200]
        assert statuses("/openapi.json") == [401, 200, 200, 200, 200]
        assert statuses("/admin/tenants") == [401, 404, 404, 404, 200]
        assert statuses("/admin/nothing") == [401, 404, 404, 404, 404]
        hidden, unknown = (client.get(path, headers=bearer(user)) for path in ("/admin/tenants", "/nothing"))
        assert hidden.content == unknown.content


def test_without_an_admin_key_there_are_no_admin_routes(tiny_folder: Path) -> None:
    with served(tiny_folder) as client:
        assert client.get("/admin/tenants").status_code == 404
        assert status(client, "any", "/admin/tenants") == 404


def test_the_admin_reads_keys_again_sees_tenants_and_drains(
    file: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "LOOK_SECONDS", 3600.0)
    key = make(file, capsys, "acme")
    keys(file, "limit", "acme", "--sessions", "2")
    with served(tiny_folder, keys_file=str(file), admin_key="admin-key") as client:
        admin = bearer("admin-key")
        answer = client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3}, headers=bearer(key)).json()
        client.post("/v1/sessions", headers=bearer(key))
        later = make(file, capsys, "later")
        assert status(client, later) == 401
        assert client.post("/admin/keys/reload", headers=admin).json() == {"object": "keys", "keys": 2, "tenants": 2}
        assert status(client, later) == 200
        file.write_text("{")
        refused = client.post("/admin/keys/reload", headers=admin)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_keys_file")
        acme, other = client.get("/admin/tenants", headers=admin).json()["data"]
        assert (acme["name"], acme["sessions"], acme["session_tokens"], other["name"]) == ("acme", 1, 0, "later")
        assert [each["id"] for each in acme["keys"]] == [hash_of(key.encode())[:12]]
        assert acme["limits"]["sessions"] == 2
        used = acme["usage"]
        assert used["prompt_tokens"] + used["completion_tokens"] == answer["usage"]["total_tokens"]
        assert (used["requests"], used["refused"], used["running"]) == (2, 0, 0)
        assert client.post("/admin/drain", headers=admin).json() == {"status": "draining", "running": 0}
        assert status(client, key) == 503
        assert client.get("/admin/tenants", headers=admin).status_code == 200, "to see who is still running"
        assert client.get("/ready").status_code == 503


@pytest.mark.slow  # a process of its own
def test_a_hangup_reads_the_keys_again(
    file: Path, start: Any, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the time of the file's change does not tell, as on some network drives."""
    first = make(file, capsys, "acme")
    with start(tiny_folder, keys_file=file) as (client, process):
        told = file.stat()
        text = json.dumps({"keys": [{"sha256": hash_of(b"x" + first.encode()[1:]), "tenant": "acme"}]})
        file.write_text(text.ljust(told.st_size))
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
        assert status(client, first) == 200
        process.send_signal(1)
        eventually(lambda: status(client, "x" + first[1:]) == 200)
        assert status(client, first) == 401
        assert process.poll() is None


def test_finding_a_key_takes_the_same_time_wherever_it_stands(file: Path) -> None:
    """All are compared: the first, the last and none differ by less than a comparison of all of them."""
    hashes = [hash_of(str(number).encode()) for number in range(300)]
    file.write_text(json.dumps({"keys": [{"sha256": each, "tenant": "a"} for each in hashes]}))
    known = Tenants(Settings(keys_file=str(file)))

    def seconds(key: str) -> float:
        best = 1.0
        for _ in range(60):
            begun = time.perf_counter()
            known.caller(f"Bearer {key}".encode())
            best = min(best, time.perf_counter() - begun)
        return best

    first, last, none = seconds("0"), seconds("299"), seconds("unknown")
    assert max(first, last, none) < 1.5 * min(first, last, none)
