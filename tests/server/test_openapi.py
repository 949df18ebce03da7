"""The OpenAPI document tells all that routes answer: schemathesis sends good and bad requests and compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from server.app import create_app
from server.openapi import ANSWERS, OTHER, operations
from server.settings import Settings
from tests.server.test_durability import served

Json = dict[str, Any]
SMALL: Json = {"max_session_tokens": 200, "kv_bytes": 8 << 20, "keepalive_seconds": 5.0}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def document() -> Json:
    return create_app(Settings()).openapi()


def test_every_operation_tells_what_it_answers() -> None:
    """A new route needs an entry in `server.openapi`."""
    named = dict(operations(document()))
    assert named.keys() == ANSWERS.keys() | OTHER.keys()
    for name, operation in named.items():
        [success] = [told for status, told in operation["responses"].items() if status < "300"]
        assert success["content"], name
        assert all("$ref" in str(each) for kind, each in success["content"].items() if kind == "application/json"), name
        if name.split()[1].startswith("/v1"):
            assert operation["responses"].keys() >= {"401", "403", "429", "500", "503"}, name
        assert "HTTPValidationError" not in str(operation), name


def strict(node: Any) -> None:
    """Let no answer have a field that the document does not tell."""
    if isinstance(node, dict):
        if "properties" in node and "additionalProperties" not in node:
            node["additionalProperties"] = False
        for each in node.values():
            strict(each)
    elif isinstance(node, list):
        for each in node:
            strict(each)


@pytest.fixture(scope="module")
def server(tiny_folder: Path) -> Iterator[httpx.Client]:
    with served(tiny_folder, admin_key="admin-key", **SMALL) as client:
        yield client


@schemathesis.serializer("application/vnd.cairn.session")
def as_it_is(context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def schema_of(client: httpx.Client) -> Any:
    told = client.get("/openapi.json").json()
    strict(told["components"]["schemas"])
    del told["paths"]["/admin/drain"]  # the others would have nothing to answer
    schema = schemathesis.openapi.from_dict(told)
    schema.config.update(base_url=str(client.base_url))
    return schema


def explore(client: httpx.Client, examples: int) -> None:
    """Send so many good and so many bad requests to each operation."""
    for found in schema_of(client).get_all_operations():
        operation = found.ok()
        send(operation, GenerationMode.POSITIVE, examples)
        if operation.body or operation.query:  # any string may be an id
            send(operation, GenerationMode.NEGATIVE, examples)


def send(operation: Any, mode: GenerationMode, examples: int) -> None:
    key = "admin-key" if operation.path.startswith("/admin") else "any"

    @hypothesis.seed(6)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, checks=CHECKS, timeout=30)

    check()


def test_a_sample_of_all_that_can_be_sent(server: httpx.Client) -> None:
    explore(server, examples=5)
    assert server.get("/health").status_code == 200


@pytest.mark.slow
def test_much_of_all_that_can_be_sent(server: httpx.Client) -> None:
    explore(server, examples=150)
    assert server.get("/health").status_code == 200
