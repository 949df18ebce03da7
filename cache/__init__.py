"""The storage engine: tensors in, blocks out. Knows no model, no text, no HTTP."""

from cache.errors import CacheError, OutOfBlocks
from cache.index import BlockIndex, IndexShape, Summary
from cache.landmarks import RULES, LandmarkRule, outlying
from cache.layout import CacheLayout
from cache.registry import SessionRegistry
from cache.session import Session
from cache.slopes import slopes
from cache.store import BlockStore
from cache.tiers import DeviceTier, Places, Tier
from cache.vectors import Vectors

__all__ = [
    "RULES",
    "BlockIndex",
    "BlockStore",
    "CacheError",
    "CacheLayout",
    "DeviceTier",
    "IndexShape",
    "LandmarkRule",
    "OutOfBlocks",
    "Places",
    "Session",
    "SessionRegistry",
    "Summary",
    "Tier",
    "Vectors",
    "outlying",
    "slopes",
]
