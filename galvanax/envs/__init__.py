"""Environments of brax's convention on MJX: classic systems and legged robots, with a registry."""

from galvanax.envs.auto_reset import AutoReset
from galvanax.envs.environment import Environment, MJXEnvironment, State
from galvanax.envs.height_scan import HeightScan
from galvanax.envs.legged.legged import LeggedEnvironment
from galvanax.envs.legged.settings import (
    Commands,
    Gait,
    ObservationNoise,
    ObservationScales,
    RewardScales,
    Termination,
)
from galvanax.envs.randomization import Randomization
from galvanax.envs.registry import load, register
from galvanax.envs.registry import names as list
from galvanax.envs.symmetry import Symmetry
from galvanax.envs.systems import Drive, load_system, system_of
from galvanax.envs.terrain import Terrain
from galvanax.envs.vision import Vision

__all__ = [
    "AutoReset",
    "Commands",
    "Drive",
    "Environment",
    "Gait",
    "HeightScan",
    "LeggedEnvironment",
    "MJXEnvironment",
    "ObservationNoise",
    "ObservationScales",
    "Randomization",
    "RewardScales",
    "State",
    "Symmetry",
    "Termination",
    "Terrain",
    "Vision",
    "list",
    "load",
    "load_system",
    "register",
    "system_of",
]
