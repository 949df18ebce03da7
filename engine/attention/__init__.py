"""Attention over a session's blocks: the protocol, the reference, and the paper's own cutting."""

from engine.attention.base import Attention, LayerGeometry, RetrievalSettings
from engine.attention.fused import FusedAttention
from engine.attention.paper import PaperAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.shared import SharedAttention, Sharing

__all__ = [
    "Attention",
    "FusedAttention",
    "LayerGeometry",
    "PaperAttention",
    "ReferenceAttention",
    "RetrievalSettings",
    "SharedAttention",
    "Sharing",
]
