"""Measurements; each prints its table from one run."""

import cache  # noqa: F401 -- before torch, which the benches import first: see there
