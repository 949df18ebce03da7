"""From a request's fields to the engine's: sampling, retrieval, limits, and one Generation per prompt.

Owns the defaults of what a request leaves out. Knows no text and no HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from engine import Generation, RetrievalParams, SamplingParams
from server.errors import ApiError
from server.responses.schemas import ResponseRequest
from server.schemas import ChatRequest, CompletionRequest, RetrievalOptions
from server.tools import Form

Body = ChatRequest | CompletionRequest | ResponseRequest

SAMPLING = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")
FREE = Form()


@dataclass(frozen=True)
class Asked:
    """A request ready to run."""

    generations: tuple[Generation, ...]
    stops: tuple[str, ...]
    tenant: str
    session_id: str | None
    stream: bool
    include_usage: bool
    return_progress: bool
    form: Form = FREE


@dataclass(frozen=True)
class Place:
    """Where prompts go: whose they are, and the session that they continue, with the tokens that it holds."""

    tenant: str
    session_id: str | None = None
    held: int = 0


def ask(
    body: Body,
    prompts: Sequence[Sequence[int]],
    place: Place,
    *,
    default_tokens: int,
    room: int,
    max_choices: int,
    stops: Sequence[str] = (),
    form: Form = FREE,
) -> Asked:
    """Generations for `prompts`; `default_tokens` (cut to the session's room) if the body sets no limit.

    `stops` are the template's own, for answers that are free; where they have a form, that tells where they end.
    """
    refuse_combinations(body, len(prompts), place, max_choices)
    retrieval = retrieval_params(body.retrieval)
    generations = [
        Generation(
            id=uuid.uuid4().hex,
            tokens=tuple(tokens),
            sampling=sampling_params(body, max(1, min(default_tokens, room - place.held - len(tokens)))),
            retrieval=retrieval,
            session_id=place.session_id,
            tenant=place.tenant,
            n=body.choices,
            constraint=form.constraint,
        )
        for tokens in prompts
    ]
    stop = (*(body.stop or ()), *(() if form.constraint else stops))
    stream, usage, progress = bool(body.stream), body.include_usage, body.return_progress
    return Asked(tuple(generations), stop, place.tenant, place.session_id, stream, usage, progress, form)


def sampling_params(body: Body, default_tokens: int) -> SamplingParams:
    """The engine's sampling parameters; what the request leaves out takes the engine's defaults."""
    given = {name: getattr(body, name) for name in SAMPLING if getattr(body, name) is not None}
    return SamplingParams(
        **given,
        max_tokens=default_tokens if body.limit is None else body.limit,
        top_k=max(0, body.top_k or 0),  # vLLM's clients say -1 for all
        logprobs=body.alternatives,
        prompt_logprobs=body.prompt_alternatives,
        ignore_eos=body.ignore_eos,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
    )


def retrieval_params(options: RetrievalOptions | None) -> RetrievalParams:
    """The engine's retrieval parameters."""
    if options is None:
        return RetrievalParams()
    return RetrievalParams(**options.model_dump())


def refuse_combinations(body: Body, prompts: int, place: Place, max_choices: int) -> None:
    """ApiError for what makes no sense together."""
    if prompts * body.choices > max_choices:
        param = "n" if prompts == 1 else "prompt"
        raise ApiError(400, f"{param}: prompts times n may not exceed {max_choices}", param, "invalid_value")
    single = prompts == 1 and body.choices == 1
    if place.session_id is not None and not single:
        raise ApiError(400, "n: a session is continued by one answer to one prompt", "n", "invalid_value")
    if place.session_id is not None and body.prompt_alternatives is not None:
        raise ApiError(400, "echo: with logprobs, not in a session, whose past is not computed again", "echo")
    for name in ("provenance", "audit", "min_mass"):
        if body.retrieval and getattr(body.retrieval, name) and not single:
            field = f"retrieval.{name}"
            raise ApiError(400, f"{field}: needs one prompt and n = 1", field, "invalid_value")
