"""What can be set: one frozen value, read from `CAIRN_*` variables and the command line. See docs/settings.md.

Owns names, types, defaults and bounds of the settings; the only reader of environment variables.
Knows no HTTP and no model; what the engine's own settings mean is the engine's.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "CAIRN_"
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class SettingError(ValueError):
    """A setting has a value that it can not have; the message names it."""


def _setting(default: Any, description: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": description, "low": low, "high": high})


@dataclass(frozen=True)
class Settings:
    """Every setting of the server; a field `x_y` is `CAIRN_X_Y` in the environment and `--x-y` on the command line."""

    model: str = _setting("models/cairn-4m", "model folder, or a hub name such as org/name")
    served_model_name: str | None = _setting(None, "name of the model in the API (default: the folder's or hub name)")
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on", 0, 65535)
    api_keys: tuple[str, ...] = _setting((), "keys that clients may use, separated by commas; none: no key is needed")
    keys_file: str | None = _setting(None, "file of API keys, made by `cairn keys` (default: no file)")
    admin_key: str | None = _setting(None, "key for the routes under /admin (default: they do not exist)")
    log_level: str = _setting("info", "critical, error, warning, info or debug")
    access_log: bool = _setting(False, "log each HTTP request")

    allowed_hosts: tuple[str, ...] = _setting((), "names by which the server may be called; * for any")
    allowed_origins: tuple[str, ...] = _setting((), "web pages that may use the server, as https://host; * for any")
    docs_page: bool = _setting(True, "serve /docs, /redoc and /openapi.json")
    log_prompts: bool = _setting(False, "log what clients send, and the words of unexpected errors")

    max_connections: int = _setting(1024, "most connections at once", 1)
    max_header_bytes: int = _setting(16384, "largest request line and headers together", 1024)
    receive_seconds: float = _setting(30.0, "time for a request to arrive; a second more for each KiB of it", 0.1)
    request_seconds: float | None = _setting(None, "longest time that a request may take", 0.001)
    max_body_bytes: int = _setting(64 << 20, "largest request body", 1024)
    max_document_bytes: int = _setting(32 << 20, "largest file that is read into a session", 1)
    max_document_pages: int = _setting(2000, "most pages of a PDF", 1)
    document_seconds: float = _setting(120.0, "time in which a file has become text", 0.01)
    document_memory_bytes: int = _setting(1 << 30, "memory of the process that reads a file", 64 << 20)
    max_import_bytes: int = _setting(4 << 30, "largest session file that may be sent", 1024)
    max_transfers: int = _setting(4, "session files that are sent or received at once", 1)
    max_choices: int = _setting(16, "most answers to one request (prompts times n)", 1, 1024)
    default_max_tokens: int = _setting(1024, "tokens of a chat answer when the request does not say", 1)
    max_responses: int = _setting(1000, "responses kept for each key; the oldest go first", 1)
    max_response_bytes: int = _setting(256 << 20, "bytes of their texts", 1)
    tool_format: str = _setting("auto", "how the model writes calls of tools: hermes, llama3_json or mistral")
    event_capacity: int = _setting(8192, "events kept for a client that reads slowly, before it is cut off", 16)
    keepalive_seconds: float = _setting(10.0, "silence in a stream after which a comment is sent", 0.01)
    drain_seconds: float = _setting(30.0, "time for running requests to end after SIGTERM", 0.0)

    max_session_tokens: int | None = _setting(None, "most text tokens in a session (default: what the model allows)", 1)
    kv_bytes: int | None = _setting(None, "bytes for keys and values (default: a GPU's, else half of what is free)", 1)
    host_kv_bytes: int | None = _setting(None, "bytes for them in host memory below a GPU's; else as kv_bytes", 1)
    disk_kv_path: str | None = _setting(None, "folder in which sessions outlive the server (default: memory alone)")
    disk_kv_bytes: int | None = _setting(None, "bytes for keys and values there (default: half of what is free)", 1)
    session_ttl: float | None = _setting(None, "seconds without use after which a session is deleted", 0.001)
    tenant_tokens: int | None = _setting(None, "text tokens that all sessions of a key may hold together", 1)
    tenant_sessions: int | None = _setting(None, "sessions that a tenant may have", 1)
    tenant_requests_per_minute: int | None = _setting(None, "requests that a tenant may send in a minute", 1)
    tenant_tokens_per_minute: int | None = _setting(None, "tokens that a tenant may give and get in a minute", 1)
    tenant_concurrent_requests: int | None = _setting(None, "requests that a tenant may have running or waiting", 1)
    max_running: int = _setting(16, "requests that run at once", 1)
    max_waiting: int = _setting(256, "requests that may wait; more are refused with 429", 0)
    step_tokens: int = _setting(512, "tokens of one forward pass", 1)
    decode_share: float = _setting(0.75, "speed that decoding requests keep while a prompt is read", 0.05, 0.95)
    landmarks: str | None = _setting(
        None, "how blocks are found (default: the trained landmarks, else the best measured)"
    )
    block_size: int | None = _setting(None, "tokens in a block (default: the model's)", 2)
    blocks_per_head: int | None = _setting(None, "far blocks that each head fetches (default: the model's)", 0)
    recent_blocks: int | None = _setting(None, "latest blocks that are always attended (default: the model's)", 0)
    sink_blocks: int | None = _setting(None, "first blocks that are always attended (default: the model's)", 0)
    landmarks_per_block: int | None = _setting(None, "landmarks of a block", 1)
    copied_blocks: int | None = _setting(None, "next best blocks that are read from copies in 4 bits", 0)
    outlier_blocks: int | None = _setting(None, "blocks that no landmark represents, always read", 0)
    retrieval_top_p: float | None = _setting(None, "fetch until this share of the attention is covered", 0.0, 1.0)
    least_blocks: int = _setting(1, "with retrieval_top_p, fetch at least so many", 0)
    estimate_rest: bool | None = _setting(None, "estimate what is not read from its landmarks")
    rest_slopes: bool | None = _setting(None, "with estimate_rest, let a block's mean value turn with the query")
    own_values: int | None = _setting(None, "blocks up to which each is looked at by itself (default: 1024)", 0)
    landmark_dtype: str | None = _setting(None, "int4 or float32 (default: int4 where the rule bears it)")
    dense_layers: int | None = _setting(None, "first layers in which every block is read", 0)
    audit_rate: float = _setting(0.0003, "share of the tokens that are compared with exact attention", 0.0, 1.0)
    positions: str | None = _setting(None, "absolute or bounded (default: the model's)")
    dtype: str = _setting("auto", "auto, float32, bfloat16 or float16")
    weights: str = _setting("auto", "auto or int8: how linear layers keep their weights")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:1: where model and cache lie")
    prefix_cache: bool = _setting(True, "share the blocks of identical beginnings within a tenant")
    threads: int | None = _setting(None, "CPU threads of a forward pass (default: torch's, one for each core)", 1)

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_range(each.name, getattr(self, each.name), each.metadata["low"], each.metadata["high"])
        if self.log_level not in ("critical", "error", "warning", "info", "debug"):
            raise SettingError(f"log_level: unknown level {self.log_level!r}")
        if self.tool_format not in ("auto", "hermes", "llama3_json", "mistral"):
            raise SettingError(f"tool_format: unknown format {self.tool_format!r}")
        if self.disk_kv_bytes is not None and self.disk_kv_path is None:
            raise SettingError("disk_kv_bytes: says how much disk_kv_path may hold; give a folder there")

    @property
    def without_keys(self) -> bool:
        """Whether everybody may use the server who reaches it."""
        return not self.api_keys and self.keys_file is None

    @property
    def model_name(self) -> str:
        """The model's name in the API: a folder's own name, and the whole name of a model on the hub."""
        folder = os.path.basename(os.path.abspath(self.model)) if os.path.isdir(self.model) else self.model
        return self.served_model_name or folder


ENGINE_SETTINGS = (
    "max_session_tokens",
    "kv_bytes",
    "host_kv_bytes",
    "disk_kv_path",
    "disk_kv_bytes",
    "session_ttl",
    "tenant_tokens",
    "max_running",
    "max_waiting",
    "step_tokens",
    "decode_share",
    "landmarks",
    "block_size",
    "blocks_per_head",
    "recent_blocks",
    "sink_blocks",
    "landmarks_per_block",
    "copied_blocks",
    "outlier_blocks",
    "retrieval_top_p",
    "least_blocks",
    "estimate_rest",
    "rest_slopes",
    "own_values",
    "landmark_dtype",
    "dense_layers",
    "audit_rate",
    "positions",
    "dtype",
    "weights",
    "device",
    "prefix_cache",
    "threads",
)
"""The settings that are handed on to the engine under the same names."""


def setting_types() -> dict[str, Any]:
    """The type of each setting by name, `None` taken out of unions."""
    hints = typing.get_type_hints(Settings)
    return {each.name: _without_none(hints[each.name]) for each in fields(Settings)}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def parse(name: str, text: str) -> Any:
    """The value that `text` stands for in setting `name`; SettingError if it stands for none."""
    kind = setting_types()[name]
    try:
        return _bytes(text.strip()) if name.endswith("_bytes") else _convert(kind, text.strip())
    except ValueError as error:
        wanted = "number of bytes, such as 4GiB" if name.endswith("_bytes") else _kind_name(kind)
        raise SettingError(f"{name}: {text!r} is not a valid {wanted}") from error


def read_settings(given: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment, with `given` (values by name, already parsed) on top."""
    environment = os.environ if environment is None else environment
    names = [each.name for each in fields(Settings)]
    values = {name: parse(name, environment[variable(name)]) for name in names if environment.get(variable(name))}
    return Settings(**{**values, **given})


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _convert(kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in TRUE | FALSE:
            raise ValueError(text)
        return text.lower() in TRUE
    if kind in (int, float, str):
        return kind(text)
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _bytes(text: str) -> int:
    """A number of bytes: whole, or with a unit of 1024 (KiB, MiB, GiB, TiB) or 1000 (KB, MB, GB, TB)."""
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]i?B)?", text, re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    number, unit = found.groups()
    if unit is None:
        return int(number)
    return int(float(number) * (1024 if len(unit) == 3 else 1000) ** (1 + "kmgt".index(unit[0].lower())))


def sized(number: int) -> str:
    """A number of bytes as people say it, exactly."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power and number % (1 << power) == 0:
            return f"{number >> power} {unit}"
    return f"{number:,} bytes"


def _kind_name(kind: Any) -> str:
    return {int: "whole number", float: "number", bool: "yes or no"}.get(kind, "value")


def _check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    if value is None or isinstance(value, str | tuple):
        return
    if not (low is None or value >= low) or not (high is None or value <= high):  # a NaN fails too
        raise SettingError(f"{name}: {value} is outside {low} to {'any' if high is None else high}")
