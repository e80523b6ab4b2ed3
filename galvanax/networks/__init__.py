"""Plain flax.nnx modules that know no task."""

from galvanax.networks.depth_encoder import DepthEncoder, Sight
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
    "DepthEncoder",
    "DiT1d",
    "DiTBlock",
    "MLPDynamicsModel",
    "Normalizer",
    "Sight",
    "Statistic",
    "TimeEmbedding",
]
