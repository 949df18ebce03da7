"""Where blocks are kept: one protocol, one file per kind of storage."""

from cache.tiers.base import LowerTier, Places, Tier, Traffic
from cache.tiers.copies import Copies, DirectCopies, StreamCopies, copies_for
from cache.tiers.device import DeviceTier
from cache.tiers.disk import DiskTier
from cache.tiers.paged import PagedTier
from cache.tiers.window import WindowTier

__all__ = [
    "Copies",
    "DeviceTier",
    "DirectCopies",
    "DiskTier",
    "LowerTier",
    "PagedTier",
    "Places",
    "StreamCopies",
    "Tier",
    "Traffic",
    "WindowTier",
    "copies_for",
]
