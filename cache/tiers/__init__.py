"""Where blocks are kept: one protocol, one file per kind of storage."""

from cache.tiers.base import Places, Tier
from cache.tiers.device import DeviceTier

__all__ = ["DeviceTier", "Places", "Tier"]
