"""Landmark rules: what stands for a block in the index, and how a query scores it."""

from cache.landmarks.base import LandmarkRule
from cache.landmarks.box import Box
from cache.landmarks.box_mean import BoxMean
from cache.landmarks.mean import Mean
from cache.landmarks.trained import Trained

RULES: dict[str, LandmarkRule] = {rule.name: rule for rule in (Trained(), Mean(), Box(), BoxMean())}

__all__ = ["RULES", "Box", "BoxMean", "LandmarkRule", "Mean", "Trained"]
