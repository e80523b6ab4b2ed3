"""Plain flax.nnx modules that know no task."""

from galvanax.networks.dynamics import BaseDynamicsModel, MLPDynamicsModel
from galvanax.networks.mlp import MLP
from galvanax.networks.normalizer import Normalizer, Statistic

__all__ = ["MLP", "BaseDynamicsModel", "MLPDynamicsModel", "Normalizer", "Statistic"]
