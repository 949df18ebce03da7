"""What `cairn serve --help` says: every setting as an option, in groups, with what its value looks like.

Owns words only; what settings mean and may be is theirs. A setting without a group of its own shows among the last.
"""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from typing import Any

from server.settings import Settings, setting_types, sized, variable

ENVIRONMENT_ONLY = ("api_keys", "admin_key")  # a command line can be read by every user of the machine
EXAMPLES = """\
examples:
  cairn serve                                          the model in this repository, on http://127.0.0.1:8000
  cairn serve --model Qwen/Qwen3-0.6B --kv-bytes 8GiB  one from the hub, and memory for its sessions
  cairn serve --disk-kv-path ~/cairn                   sessions larger than memory, that outlive the server
  cairn serve --keys-file keys.json --host 0.0.0.0     for others, each with a key of their own (`cairn keys`)

Each option is also a variable, in brackets; the option wins. A number of bytes may have a unit (512MiB, 4GiB).
docs/settings.md tells more of each. Ctrl-C stops; SIGTERM lets what runs come to its end first."""
GROUPS = {
    "the model": "model served_model_name dtype weights threads device tool_format max_session_tokens",
    "who may use it": "host port keys_file allowed_hosts allowed_origins docs_page",
    "memory": "kv_bytes host_kv_bytes disk_kv_path disk_kv_bytes session_ttl prefix_cache",
    "limits of a tenant, where its key sets none": "tenant_tokens tenant_sessions tenant_requests_per_minute "
    "tenant_tokens_per_minute tenant_concurrent_requests",
    "limits of a request": "max_connections max_header_bytes receive_seconds request_seconds max_body_bytes "
    "max_document_bytes max_document_pages document_seconds document_memory_bytes max_import_bytes max_transfers "
    "max_choices default_max_tokens max_responses max_response_bytes event_capacity keepalive_seconds",
    "work": "max_running max_waiting step_tokens decode_share drain_seconds",
    "logs": "log_level access_log log_prompts",
}
LAST = "retrieval"
METAVARS = {
    "model": "MODEL",
    "served_model_name": "NAME",
    "host": "ADDRESS",
    "port": "PORT",
    "keys_file": "FILE",
    "disk_kv_path": "FOLDER",
    "session_ttl": "SECONDS",
    "log_level": "LEVEL",
    "landmarks": "RULE",
    "retrieval_top_p": "SHARE",
    "decode_share": "SHARE",
    "audit_rate": "SHARE",
}
BY_TYPE = {bool: "YES|NO", int: "N", float: "N", tuple[str, ...]: "A,B"}


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and spares the list of all options where they are told one by one."""

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        options = [action for action in actions if action.option_strings]
        super().add_usage(usage or ("%(prog)s [OPTION…]" if len(options) > 10 else None), actions, groups, prefix)


def add(commands: Any) -> None:
    """The command `serve` and its options."""
    about = "Serve a model over HTTP: OpenAI's API, and sessions (docs/api.md)."
    parser = commands.add_parser(
        "serve", help="serve a model over HTTP", description=about, epilog=EXAMPLES, formatter_class=Help
    )
    titles = {name: title for title, names in GROUPS.items() for name in names.split()}
    groups = {title: parser.add_argument_group(title) for title in (*GROUPS, LAST)}
    for each in fields(Settings):
        if each.name not in ENVIRONMENT_ONLY:
            _add(groups[titles.get(each.name, LAST)], each)


def _add(group: Any, setting: Field[Any]) -> None:
    shown = "" if setting.default in (None, ()) else f" (default: {_told(setting.name, setting.default)})"
    text = f"{setting.metadata['help']}{shown} [{variable(setting.name)}]".replace("%", "%%")
    group.add_argument("--" + setting.name.replace("_", "-"), metavar=_metavar(setting.name), help=text)


def _told(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return sized(default) if name.endswith("_bytes") else f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(name: str) -> str:
    by_name = "BYTES" if name.endswith("_bytes") else "SECONDS" if name.endswith("_seconds") else None
    return METAVARS.get(name) or by_name or BY_TYPE.get(setting_types()[name], "WORD")
