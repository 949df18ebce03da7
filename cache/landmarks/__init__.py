"""Landmark rules: what stands for a block in the index, and how a query scores it."""

from cache.landmarks.base import LandmarkRule
from cache.landmarks.box import Box
from cache.landmarks.box_mean import BoxMean
from cache.landmarks.clusters import Clusters
from cache.landmarks.combiner import Combiner
from cache.landmarks.dilated import Dilated
from cache.landmarks.lsh import LSH
from cache.landmarks.mean import Mean
from cache.landmarks.moments import Moments, expected_largest
from cache.landmarks.outliers import outlying
from cache.landmarks.performer import Performer
from cache.landmarks.random import Random
from cache.landmarks.trained import Trained

RULES: dict[str, LandmarkRule] = {
    rule.name: rule
    for rule in (
        Trained(), Mean(), Box(), BoxMean(), Moments(), Clusters(), Combiner(), LSH(), Performer(), Random(), Dilated(),
    )
}  # fmt: skip
"""By name; the last five are there to compare with."""

__all__ = ["RULES", "LandmarkRule", "expected_largest", "outlying"]
