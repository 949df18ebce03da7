"""Landmark training: the recipe of the model that we ship. Knows no HTTP and no cache."""

from training.corpus import HELD_OUT, read_documents
from training.names import BENCH_NAMES

__all__ = ["BENCH_NAMES", "HELD_OUT", "read_documents"]
