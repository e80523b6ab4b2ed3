from .depth_encoder import DepthEncoder, Sight
from .dit import DIT_SIZES, DiT1d, DiTBlock
from .dynamics import BaseDynamicsModel, MLPDynamicsModel
from .embeddings import ContinuousCondEmbedder, TimeEmbedding
from .mlp import MLP
from .normalizer import Normalizer, Statistic

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
