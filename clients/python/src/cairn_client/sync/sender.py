"""Sends requests and tries again. Knows no call of the API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx

from cairn_client.errors import CairnError
from cairn_client.operations import Call, Reply, Request
from cairn_client.sending import Attempts, Retries, announced, check, failures, form, plain, reply_of

Result = TypeVar("Result")


class Sender:
    """One server, and how patiently it is asked."""

    def __init__(self, http: httpx.Client, retries: Retries) -> None:
        self._http, self._retries = http, retries

    def call(self, call: Call[Result]) -> Result:
        """The result of a call."""
        return call.result(self._persist(call.request, lambda: self._reply(call.request)) or Reply())

    def open(self, request: Request) -> httpx.Response:
        """A response whose body is still to be read, and which is to be closed."""
        response = self._persist(request, lambda: self._opened(request))
        assert response is not None, "only a deletion can be settled by its repetition"
        return response

    def pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """The body of an open response."""
        with self._failures():
            yield from response.iter_bytes()

    def close(self) -> None:
        self._http.close()

    def _persist(self, request: Request, send: Callable[[], Result]) -> Result | None:
        """What `send` gives at last; None if its failure says that it was done before."""
        attempts = Attempts(self._retries, request)
        while True:
            try:
                return send()
            except CairnError as error:
                if attempts.settles(error):
                    return None
                time.sleep(attempts.after(error))

    def _reply(self, request: Request) -> Reply:
        with self._failures(), self._built(request) as built:
            return reply_of(request, self._http.send(built))

    def _opened(self, request: Request) -> httpx.Response:
        with self._failures(), self._built(request) as built:
            response = self._http.send(built, stream=True)
            if response.is_error:
                with contextlib.closing(response):
                    check(request, response, response.read())
            return response

    @contextlib.contextmanager
    def _built(self, request: Request) -> Iterator[httpx.Request]:
        """httpx's request, whose file is open for as long as it is sent."""
        if request.upload is None:
            yield self._http.build_request(**plain(request))
            return
        with request.upload.opened() as file:
            if request.form is None:
                body = {"headers": announced(request, file), "content": request.upload.pieces(file)}
            else:
                body = form(request, file)
            yield self._http.build_request(**plain(request) | body)

    def _failures(self) -> contextlib.AbstractContextManager[None]:
        return failures(str(self._http.base_url).rstrip("/"))
