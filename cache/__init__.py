"""The storage engine: tensors in, blocks out. Knows no model, no text, no HTTP.

Import this, or the engine, before torch: torch's threads read how long to spin only once.
"""

import os

# After each of its parallel operations torch's threads spin for milliseconds in the hope of another one, on the cores
# that our kernels run on next. This is some hundredth of one; none at all makes each operation wake its threads up, and
# ten times as much lets them spin for a thread whose core another process has: half as fast then.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from cache.archive import Archive
from cache.centred import FIRST
from cache.check import Checked, check
from cache.compiling import compiled, job, kernels
from cache.errors import CacheError, DamagedBlock, OutOfBlocks, StoreError
from cache.four_bits import LANES, ByChannel, ByRow
from cache.gathering import Gathering
from cache.index import BlockIndex, IndexShape
from cache.landmarks import RULES, LandmarkRule, expected_largest, outlying
from cache.layout import CacheLayout
from cache.pages import large_pages, zeros
from cache.parallel import over_heads, threads_for
from cache.patience import Patience
from cache.readings import EVERYTHING, SERVER, Reading, Readings, Run
from cache.registry import SessionRegistry
from cache.sections import PAIR, SECTION, pairs_opened
from cache.session import Session
from cache.sharing import InRow, Shared, SideBySide, Task, Tasks
from cache.slopes import ROUNDS, slopes
from cache.store import BlockStore
from cache.stretches import opened as tiles_opened
from cache.summary import Summary
from cache.team import together
from cache.tiers import DeviceTier, DiskTier, LowerTier, PagedTier, Places, Tier, Traffic, WindowTier, copies_for
from cache.turns import MOST_TURNS, Turn, Turns
from cache.usual import BEGINNING, Usual
from cache.vectors import Meter, Vectors
from cache.waking import Waking

__all__ = [
    "BEGINNING",
    "EVERYTHING",
    "FIRST",
    "LANES",
    "MOST_TURNS",
    "PAIR",
    "ROUNDS",
    "RULES",
    "SECTION",
    "SERVER",
    "Archive",
    "BlockIndex",
    "BlockStore",
    "ByChannel",
    "ByRow",
    "CacheError",
    "CacheLayout",
    "Checked",
    "DamagedBlock",
    "DeviceTier",
    "DiskTier",
    "Gathering",
    "InRow",
    "IndexShape",
    "LandmarkRule",
    "LowerTier",
    "Meter",
    "OutOfBlocks",
    "PagedTier",
    "Patience",
    "Places",
    "Reading",
    "Readings",
    "Run",
    "Session",
    "SessionRegistry",
    "Shared",
    "SideBySide",
    "StoreError",
    "Summary",
    "Task",
    "Tasks",
    "Tier",
    "Traffic",
    "Turn",
    "Turns",
    "Usual",
    "Vectors",
    "Waking",
    "WindowTier",
    "check",
    "compiled",
    "copies_for",
    "expected_largest",
    "job",
    "kernels",
    "large_pages",
    "outlying",
    "over_heads",
    "pairs_opened",
    "slopes",
    "threads_for",
    "tiles_opened",
    "together",
    "zeros",
]
