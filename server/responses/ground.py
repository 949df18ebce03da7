"""Where a response is computed: the session that it goes on from, and what is new in it.

Owns the rule. A response with a past goes on in a fork of the session that holds it, so that two may go on from the
same one. If nothing holds it any more (deleted, expired, or `instructions` or `tools` are others, which stand at the
beginning), the conversation is read again from its items. Knows no HTTP and no shape of an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine import Engine, SessionBusy, SessionInfo, SessionNotFound, StoreError
from server.asking import Place
from server.errors import ApiError
from server.responses.items import Item, input_items, messages
from server.responses.schemas import ResponseRequest
from server.responses.store import Stored
from server.service import Model
from server.tool_prompt import Message

log = logging.getLogger("cairn")
PROVISIONAL_SECONDS = 600.0
"""A session whose response was never stored, because the server crashed, goes after so long."""
AT_ONCE = 0.001


@dataclass
class Ground:
    """Where one response is computed.

    Attributes:
        place: the session, if there is one
        messages: what is to be read there
        items: the request's own input
        owned, whole: as Stored has them
        previous: the response that it goes on from
        forked: whether the session is a fork of the previous one's
        kept: whether the session stays
    """

    place: Place
    messages: list[Message]
    items: list[Item]
    owned: bool = True
    whole: bool = True
    previous: Stored | None = None
    forked: bool = False
    kept: bool = False


@asynccontextmanager
async def grounded(model: Model, body: ResponseRequest, place: Place) -> AsyncIterator[Ground]:
    """The ground of a request; its session is gone afterwards if the response was not kept."""
    ground = await _ground(model, body, place)
    try:
        yield ground
    finally:
        if ground.owned and not ground.kept and ground.place.session_id is not None:
            await forget(model, ground.place.session_id, ground.place.tenant)


async def _ground(model: Model, body: ResponseRequest, place: Place) -> Ground:
    items = input_items(body.input)
    if place.session_id is not None:
        said = messages(items, body.instructions)
        return Ground(place, said, items, owned=False, whole=place.held == 0)
    if body.previous_response_id is None:
        return Ground(await _fresh(model, body, place), messages(items, body.instructions), items)
    previous = await _previous(model, body.previous_response_id, place.tenant)
    return await _after(model, body, place, items, previous)


async def _after(model: Model, body: ResponseRequest, place: Place, items: list[Item], previous: Stored) -> Ground:
    same = _told(previous) == (body.instructions, body.told)
    if (same or not previous.whole) and (fork := await _fork(model, previous)) is not None:
        said = messages(items, None if same else body.instructions)
        return Ground(fork, said, items, whole=previous.whole, previous=previous, forked=True)
    if not previous.whole:
        message = "previous_response_id: the session in which that response was made has gone or has changed"
        raise ApiError(404, message, "previous_response_id", "session_not_found")
    past = await asyncio.to_thread(history, model, previous)
    said = messages([*past, *items], body.instructions)
    return Ground(await _fresh(model, body, place), said, items, previous=previous)


def _told(previous: Stored) -> tuple[str | None, list[Item]]:
    """What stands at the beginning of that response's conversation: its instructions, and its tools."""
    body = previous.body
    return body["instructions"], [] if body["tool_choice"] == "none" else body["tools"]


async def _previous(model: Model, id: str, tenant: str) -> Stored:
    found = await asyncio.to_thread(model.responses.get, id, tenant)
    if found is None:
        message = f"previous_response_id: there is no response {id!r}, or it was not stored"
        raise ApiError(400, message, "previous_response_id", "previous_response_not_found")
    return found


def history(model: Model, last: Stored) -> list[Item]:
    """All items of the conversation that ends with `last`, its answer included."""
    return [item for each in model.responses.chain(last) for item in (*each.items, *each.body["output"])]


async def _fresh(model: Model, body: ResponseRequest, place: Place) -> Place:
    """A new session, or none if nothing is to be kept."""
    if not body.keeps:
        return place
    create = partial(Engine.create_session, ttl=PROVISIONAL_SECONDS)
    info: SessionInfo = await model.engine.call(create, place.tenant)
    return Place(place.tenant, info.id)


async def _fork(model: Model, previous: Stored) -> Place | None:
    """A session that begins as `previous` ended; None if none does any more."""
    while previous.session is not None:
        with suppress(SessionNotFound):
            info: SessionInfo = await model.engine.call(Engine.fork_session, previous.session, previous.tenant)
            provisional = partial(Engine.change_session, pinned=False, ttl=PROVISIONAL_SECONDS)
            await model.engine.call(provisional, info.id, previous.tenant)
            if info.tokens >= previous.tokens and await _begins(model, info.id, previous):
                await asyncio.to_thread(model.library.fork, previous.tenant, previous.session, info.id)
                return Place(previous.tenant, info.id, previous.tokens)
            await forget(model, info.id, previous.tenant)  # who owns it has changed it
            return None
        now = await asyncio.to_thread(model.responses.get, previous.id, previous.tenant)
        if now is None or now.session == previous.session:
            return None
        previous = now  # another response went on from it meanwhile, and took the session along
    return None


async def _begins(model: Model, fork: str, previous: Stored) -> bool:
    """Whether a fork begins with that response's conversation; it then holds no more."""
    rewind = partial(Engine.rewind_session, tokens=previous.tokens)
    await model.engine.call(rewind, fork, previous.tenant)
    return await _digest(model, fork, previous.tenant) == (previous.tokens, previous.digest)


async def _digest(model: Model, session: str, tenant: str) -> tuple[int, bytes]:
    """How many tokens a session has, and what tells them from others."""
    tokens: list[int] = await model.engine.call(Engine.session_tokens, session, tenant)
    return len(tokens), await asyncio.to_thread(_hash, tokens)


def _hash(tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", tokens).tobytes(), digest_size=16).digest()


async def keep(model: Model, ground: Ground, body: dict[str, Any], ttl: float | None) -> bool:
    """Store a response with the session that holds it; False if the disk does not take it."""
    session, tenant = str(ground.place.session_id), ground.place.tenant
    tokens, digest = await _digest(model, session, tenant)
    previous = ground.previous
    new = Stored(
        body["id"],
        tenant,
        previous.id if previous else None,
        session,
        tokens,
        digest,
        ground.owned,
        ground.whole,
        body,
        ground.items,
    )
    replaces = previous.session if previous and previous.owned and ground.forked else None
    try:
        gone = await asyncio.to_thread(model.responses.put, new, replaces)
    except StoreError as error:
        log.error("a response could not be stored: %s", error)
        return False
    ground.kept = True
    if ground.owned:
        await model.engine.call(partial(Engine.change_session, ttl=ttl or 0), session, tenant)
    for each in gone:
        if each != replaces or not await _another_s(model, each, previous):
            await forget(model, each, tenant)
    return True


async def _another_s(model: Model, session: str, previous: Stored | None) -> bool:
    """Whether the caller uses the session of a response as one of their own by now."""
    with suppress(SessionNotFound):
        info: SessionInfo = await model.engine.call(Engine.get_session, session, str(previous and previous.tenant))
        return info.pinned or previous is None or info.tokens != previous.tokens
    return False


async def forget(model: Model, session: str, tenant: str) -> None:
    """Delete a session, once nothing runs in it any more."""
    with suppress(SessionNotFound):
        try:
            await model.engine.call(Engine.delete_session, session, tenant)
        except SessionBusy:
            await model.engine.call(partial(Engine.change_session, pinned=False, ttl=AT_ONCE), session, tenant)
