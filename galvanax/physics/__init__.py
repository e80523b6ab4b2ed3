"""States, integrators, random data and reference trajectories."""

from galvanax.physics.collect import Rollouts, collect_random_rollouts, count_substeps, extract_state_features
from galvanax.physics.dynamics import Dynamics, MJXDynamics, unroll
from galvanax.physics.hydrax import DynamicsRollouts, refresh_kinematics
from galvanax.physics.implicit_step import implicit_step
from galvanax.physics.integrators import integrate_positions, semi_implicit_euler
from galvanax.physics.joint_targets import JointTargets
from galvanax.physics.layout import StateLayout
from galvanax.physics.models import bundled_models, load_model
from galvanax.physics.mpc import CEM, MPPI, PlanInfo
from galvanax.physics.open_loop import (
    PredictionError,
    max_contacts,
    mujoco_rollout,
    one_step_velocity_error,
    open_loop_error,
    predict_open_loop,
)
from galvanax.physics.pendulum import PendulumSystem
from galvanax.physics.rollout import rollout
from galvanax.physics.starts import NarrowStart, WideStart
from galvanax.physics.system import (
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
