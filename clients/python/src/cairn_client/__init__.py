"""Client of Cairn, an inference server whose KV cache is a searchable memory: sessions, streams, what answers read.

    from cairn_client import Cairn

    with Cairn("http://127.0.0.1:8000") as cairn:
        session = cairn.sessions.create()
        cairn.sessions.add_document(session, "book.pdf")
        answer = cairn.chat("Who wrote this?", session=session, retrieval={"provenance": True})
        print(answer.text, answer.passages[0].text)

types.py, events.py, errors.py, options.py  what is told and asked
operations.py, reading.py                   each call as a value: what is sent, how its answer is read
sse.py, files.py, sending.py, waiting.py    event streams, files, when to try again: nothing of it sends
sync/, aio/                                 the two clients, which do
"""

from cairn_client.aio.client import AsyncCairn
from cairn_client.aio.streams import AsyncAnswerStream, AsyncStream
from cairn_client.errors import (
    ApiError,
    BadReply,
    BadRequest,
    Busy,
    CairnError,
    Changed,
    Forbidden,
    KeyReused,
    NotFound,
    NotReachable,
    NotReady,
    RateLimited,
    ServerFailed,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from cairn_client.events import Ended, Event, Progress, Read, TextPiece, ToolCallPiece, Used
from cairn_client.options import ChatOptions, CompletionOptions, Message, RetrievalOptions
from cairn_client.sending import Retries
from cairn_client.sync.client import Cairn
from cairn_client.sync.streams import AnswerStream, Stream
from cairn_client.types import (
    Answer,
    Appended,
    Audit,
    Choice,
    Document,
    Found,
    Health,
    Model,
    Passage,
    Retrieval,
    Session,
    SessionPage,
    SessionText,
    Timings,
    Tokens,
    ToolCall,
    Turn,
    Usage,
)
from cairn_client.version import VERSION

__version__ = VERSION

__all__ = [
    "Answer",
    "AnswerStream",
    "ApiError",
    "Appended",
    "AsyncAnswerStream",
    "AsyncCairn",
    "AsyncStream",
    "Audit",
    "BadReply",
    "BadRequest",
    "Busy",
    "Cairn",
    "CairnError",
    "Changed",
    "ChatOptions",
    "Choice",
    "CompletionOptions",
    "Document",
    "Ended",
    "Event",
    "Forbidden",
    "Found",
    "Health",
    "KeyReused",
    "Message",
    "Model",
    "NotFound",
    "NotReachable",
    "NotReady",
    "Passage",
    "Progress",
    "RateLimited",
    "Read",
    "Retries",
    "Retrieval",
    "RetrievalOptions",
    "ServerFailed",
    "Session",
    "SessionPage",
    "SessionText",
    "Stream",
    "TextPiece",
    "TimedOut",
    "Timings",
    "Tokens",
    "TooLarge",
    "ToolCall",
    "ToolCallPiece",
    "Turn",
    "Unauthorized",
    "Unavailable",
    "Usage",
    "Used",
    "__version__",
]
