from .auto_reset import AutoReset
from .environment import Environment, MJXEnvironment, State
from .height_scan import HeightScan
from .legged.legged import LeggedEnvironment
from .legged.settings import (
    Commands,
    Gait,
    ObservationNoise,
    ObservationScales,
    RewardScales,
    Termination,
)
from .randomization import Randomization
from .registry import list, load, register
from .symmetry import Symmetry
from .systems import Drive, load_system, system_of
from .terrain import Terrain
from .vision import Vision

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
