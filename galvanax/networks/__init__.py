"""Plain flax.nnx modules that know no task."""

from galvanax.networks.dit import DIT_SIZES, DiT1d, DiTBlock
from galvanax.networks.dynamics import BaseDynamicsModel, MLPDynamicsModel
from galvanax.networks.embeddings import ContinuousCondEmbedder, TimeEmbedding
from galvanax.networks.mlp import MLP
from galvanax.networks.normalizer import Normalizer, Statistic

__all__ = [
    "DIT_SIZES",
    "MLP",
    "BaseDynamicsModel",
    "ContinuousCondEmbedder",
    "DiT1d",
    "DiTBlock",
    "MLPDynamicsModel",
    "Normalizer",
    "Statistic",
    "TimeEmbedding",
]
