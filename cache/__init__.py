"""The storage engine: tensors in, blocks out. Knows no model, no text, no HTTP."""

from cache.errors import CacheError, OutOfBlocks
from cache.index import LandmarkIndex
from cache.landmarks import RULES, LandmarkRule
from cache.layout import CacheLayout
from cache.registry import SessionRegistry
from cache.session import Session
from cache.store import BlockStore
from cache.tiers import DeviceTier, Tier

__all__ = [
    "RULES",
    "BlockStore",
    "CacheError",
    "CacheLayout",
    "DeviceTier",
    "LandmarkIndex",
    "LandmarkRule",
    "OutOfBlocks",
    "Session",
    "SessionRegistry",
    "Tier",
]
