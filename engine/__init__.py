"""Token ids in, token ids out. Knows no text, no HTTP."""

from cache import StoreError, check
from engine.assembly import choose_attention, index_shapes
from engine.attention import (
    Attention,
    FusedAttention,
    LayerGeometry,
    PaperAttention,
    ReferenceAttention,
    RetrievalSettings,
)
from engine.config import EngineConfig
from engine.constraint import Constraint
from engine.description import ModelDescription, SessionInfo, TurnInfo
from engine.engine import Engine
from engine.errors import (
    ConstraintFailed,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidParameter,
    InvalidSessionFile,
    ModelError,
    OutOfRoom,
    QueueFull,
    QuotaExceeded,
    RequestError,
    SessionBusy,
    SessionNotFound,
    SessionTooLong,
)
from engine.huggingface import LoadedModel, load_model
from engine.loading import load_engine
from engine.memory import Export, Imported, Told
from engine.requests import (
    AuditReport,
    Event,
    Failed,
    Finished,
    Generation,
    Passage,
    Progress,
    Quota,
    RetrievalParams,
    RetrievalReport,
    Scored,
    Search,
    Timing,
    Token,
    Usage,
)
from engine.runner import ModelRunner
from engine.sampling import SamplingParams
from engine.stats import EngineStats, StepReport, TierStats
from engine.step import Span, Step

__all__ = [
    "Attention",
    "AuditReport",
    "Constraint",
    "ConstraintFailed",
    "EmptyPrompt",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "EngineStopped",
    "Event",
    "Export",
    "Failed",
    "Finished",
    "FusedAttention",
    "Generation",
    "Imported",
    "InvalidParameter",
    "InvalidSessionFile",
    "LayerGeometry",
    "LoadedModel",
    "ModelDescription",
    "ModelError",
    "ModelRunner",
    "OutOfRoom",
    "PaperAttention",
    "Passage",
    "Progress",
    "QueueFull",
    "Quota",
    "QuotaExceeded",
    "ReferenceAttention",
    "RequestError",
    "RetrievalParams",
    "RetrievalReport",
    "RetrievalSettings",
    "SamplingParams",
    "Scored",
    "Search",
    "SessionBusy",
    "SessionInfo",
    "SessionNotFound",
    "SessionTooLong",
    "Span",
    "Step",
    "StepReport",
    "StoreError",
    "TierStats",
    "Timing",
    "Token",
    "Told",
    "TurnInfo",
    "Usage",
    "check",
    "choose_attention",
    "index_shapes",
    "load_engine",
    "load_model",
]
