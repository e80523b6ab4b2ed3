from .collect import Rollouts, collect_random_rollouts, count_substeps, extract_state_features
from .dynamics import Dynamics, MJXDynamics, unroll
from .hydrax import DynamicsRollouts, refresh_kinematics
from .implicit_step import implicit_step
from .integrators import integrate_positions, semi_implicit_euler
from .joint_targets import JointTargets
from .layout import StateLayout
from .models import bundled_models, load_model
from .mpc import CEM, MPPI, PlanInfo
from .open_loop import (
    PredictionError,
    max_contacts,
    mujoco_rollout,
    one_step_velocity_error,
    open_loop_error,
    predict_open_loop,
)
from .pendulum import PendulumSystem
from .rollout import rollout
from .starts import NarrowStart, WideStart
from .system import (
    MJXSystem,
    System,
    action_limits_of,
    layout_of,
    model_of,
    state_difference,
)

__all__ = [
    "CEM",
    "MPPI",
    "Dynamics",
    "DynamicsRollouts",
    "JointTargets",
    "MJXDynamics",
    "MJXSystem",
    "NarrowStart",
    "PendulumSystem",
    "PlanInfo",
    "PredictionError",
    "Rollouts",
    "StateLayout",
    "System",
    "WideStart",
    "action_limits_of",
    "bundled_models",
    "collect_random_rollouts",
    "count_substeps",
    "extract_state_features",
    "implicit_step",
    "integrate_positions",
    "layout_of",
    "load_model",
    "max_contacts",
    "model_of",
    "mujoco_rollout",
    "one_step_velocity_error",
    "open_loop_error",
    "predict_open_loop",
    "refresh_kinematics",
    "rollout",
    "semi_implicit_euler",
    "state_difference",
    "unroll",
]
