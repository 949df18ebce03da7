"""Where blocks are kept: one protocol, one file per kind of storage."""

from cache.tiers.base import Places, Tier
from cache.tiers.device import DeviceTier
from cache.tiers.disk import DiskTier
from cache.tiers.paged import PagedTier

__all__ = ["DeviceTier", "DiskTier", "PagedTier", "Places", "Tier"]
