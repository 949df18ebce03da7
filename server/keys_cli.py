"""`cairn keys`: make, list and revoke keys, and set tenants' limits, in the file that `cairn serve --keys-file` reads.

Owns the command's arguments and its words. A key is shown once, when it is made: the file holds its hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from server.keys import Key, KeysError, KeysFile, Limits, TenantEntry, hash_of, new_key, read_keys, write_keys
from server.settings import read_settings

Given = Mapping[str, Any]
NAMES = "a name has up to 63 small letters, digits, dots, dashes and underscores, and begins with a letter or a digit"
ABOUT = """Make, list and revoke keys, and set tenants' limits, in the file that `cairn serve --keys-file` reads. \
A key is shown once, when it is made: the file holds its hash."""


def add(commands: Any) -> None:
    """The command's arguments."""
    keys = commands.add_parser("keys", help="make, list and revoke API keys", description=ABOUT)
    actions = keys.add_subparsers(dest="action", required=True)
    create = _action(actions, "create", "make a key and print it, once")
    create.add_argument("tenant", nargs="?", help="whose key; several keys of a tenant share its sessions and limits")
    create.add_argument("--role", default="user", choices=["user", "metrics", "admin"], help="default: user")
    create.add_argument("--days", type=float, help="after so many days the key is refused (default: never)")
    adopt = "take the key that is given on the standard input, one of CAIRN_API_KEYS, and its sessions with it"
    create.add_argument("--adopt", action="store_true", help=adopt)
    _action(actions, "list", "list keys by their ids")
    _action(actions, "revoke", "refuse a key from now on").add_argument("id", help="as `list` shows it")
    limit = _action(actions, "limit", "set a tenant's limits; those left out stay as they are")
    limit.add_argument("tenant", help="whose limits")
    for name in Limits.model_fields:
        limit.add_argument(_option(name), type=int, metavar="N", help="0 sets no limit")


def run(given: Given) -> int:
    """Do what was asked; the exit code."""
    actions: dict[str, Callable[[KeysFile, Given], KeysFile | None]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
        "limit": _limit,
    }
    try:
        path = _path(given)
        begins = given["action"] in ("create", "limit") and not path.exists()
        changed = actions[given["action"]](KeysFile() if begins else read_keys(path), given)
        if changed is not None:
            write_keys(path, changed)
    except (KeysError, OSError) as error:
        print(f"cairn: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        print(f"cairn: {_told(error)}", file=sys.stderr)
        return 2
    return 0


def _told(error: ValidationError) -> str:
    """What is wrong, and with which argument."""
    first = error.errors()[0]
    known = NAMES if first["type"] == "string_pattern_mismatch" else first["msg"].removeprefix("Value error, ")
    return ": ".join([str(part) for part in first["loc"][-1:]] + [known])


def _create(file: KeysFile, given: Given) -> KeysFile:
    key = sys.stdin.readline().strip() if given["adopt"] else new_key()
    if not key:
        raise KeysError("give the key that is to be adopted on the standard input")
    now = datetime.now(UTC).replace(microsecond=0)
    expires = None if given["days"] is None else now + timedelta(days=given["days"])
    hashed = hash_of(key.encode())
    made = Key(sha256=hashed, tenant=given["tenant"], role=given["role"], created=now, expires=expires)
    tenants = dict(file.tenants)
    if given["adopt"] and made.tenant is not None:
        if made.tenant in tenants or any(each.tenant == made.tenant for each in file.keys):
            raise KeysError(f"the tenant {made.tenant} has sessions of its own; adopt the key under a new name")
        tenants[made.tenant] = TenantEntry(sessions_of=hashed)
    changed = KeysFile(tenants=tenants, keys=(*file.keys, made))
    if not given["adopt"]:
        print(key)
    print(f"key {made.id} is made; it can not be shown again", file=sys.stderr)
    return changed


def _list(file: KeysFile, given: Given) -> None:
    for key in file.keys:
        state = "expired" if key.expired else f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "valid"
        print(f"{key.id}  {key.role:<7}  {key.tenant or '-':<20}  {state}")


def _revoke(file: KeysFile, given: Given) -> KeysFile:
    left = tuple(key for key in file.keys if key.id != given["id"])
    if len(left) == len(file.keys):
        raise KeysError(f"there is no key {given['id']}; `cairn keys list` shows them")
    return file.model_copy(update={"keys": left})


def _limit(file: KeysFile, given: Given) -> KeysFile:
    said = {name: given[name] for name in Limits.model_fields if given[name] is not None}
    entry = file.tenant(given["tenant"])
    limits = Limits(**{**entry.limits.model_dump(), **said})
    told = [
        f"{_option(name)[2:]} {value or 'without limit'}"
        for name, value in limits.model_dump(exclude_none=True).items()
    ]
    print(f"{given['tenant']}: {', '.join(told) or 'the limits of the server'}")
    tenants = {**file.tenants, given["tenant"]: TenantEntry(limits=limits, sessions_of=entry.sessions_of)}
    return KeysFile(tenants=tenants, keys=file.keys)


def _path(given: Given) -> Path:
    named = given["keys_file"] or read_settings({}).keys_file
    if named is None:
        raise KeysError("say which file: --keys-file FILE, or CAIRN_KEYS_FILE")
    return Path(named)


def _action(actions: Any, name: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=description, description=description)
    parser.add_argument("--keys-file", metavar="FILE", help="default: CAIRN_KEYS_FILE")
    return parser


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
