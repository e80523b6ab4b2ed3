"""States, integrators, random data and reference trajectories."""

from galvanax.physics.collect import Rollouts, collect_random_rollouts, count_substeps, extract_state_features
from galvanax.physics.dynamics import Dynamics, MJXDynamics, rollout
from galvanax.physics.hydrax import DynamicsRollouts, refresh_kinematics
from galvanax.physics.integrators import integrate_positions, semi_implicit_euler
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
from galvanax.physics.starts import NarrowStart, WideStart

__all__ = [
    "CEM",
    "MPPI",
    "Dynamics",
    "DynamicsRollouts",
    "MJXDynamics",
    "NarrowStart",
    "PlanInfo",
    "PredictionError",
    "Rollouts",
    "StateLayout",
    "WideStart",
    "bundled_models",
    "collect_random_rollouts",
    "count_substeps",
    "extract_state_features",
    "integrate_positions",
    "load_model",
    "max_contacts",
    "mujoco_rollout",
    "one_step_velocity_error",
    "open_loop_error",
    "predict_open_loop",
    "refresh_kinematics",
    "rollout",
    "semi_implicit_euler",
]
