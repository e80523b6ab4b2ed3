"""Galvanax: one Trainer over JAX for robot learning. The public names."""

from galvanax import envs, networks, physics, rendering
from galvanax.callbacks.callback import Callback
from galvanax.callbacks.csv_logger import CSVLogger
from galvanax.callbacks.early_stopping import EarlyStopping
from galvanax.callbacks.ema import EMA
from galvanax.callbacks.freeze import Freeze
from galvanax.callbacks.gradient_accumulation import GradientAccumulation
from galvanax.callbacks.gradient_clipping import GradientClipping
from galvanax.callbacks.model_summary import ModelSummary
from galvanax.callbacks.progress_bar import ProgressBar
from galvanax.callbacks.tensorboard_logger import TensorBoardLogger
from galvanax.callbacks.video_recorder import VideoRecorder
from galvanax.callbacks.wandb_logger import WandBLogger
from galvanax.callbacks.warm_start import WarmStart
from galvanax.datamodules.arrays import ArrayDataModule
from galvanax.datamodules.datamodule import DataModule, Statistics
from galvanax.datamodules.dynamics import DynamicsDataModule, DynamicsDataset, create_dataset, split_dataset
from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.datamodules.motions import MotionDataModule
from galvanax.datamodules.rollouts import RolloutDataModule
from galvanax.datamodules.trajectories import TrajectoryDataModule
from galvanax.datamodules.trajectory_files import read_trajectories
from galvanax.datamodules.trajectory_table import Trajectory
from galvanax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GalvanaxError,
    NonFiniteError,
    Preempted,
    ProcessError,
    RenderError,
    RunDirError,
)
from galvanax.experiments.experiment import Experiment
from galvanax.experiments.registry import load_experiment
from galvanax.experiments.tuning import Choice, Range, Tuning, tune
from galvanax.identification.identification import Identification
from galvanax.identification.identify import identify
from galvanax.identification.parameters import set_parameters
from galvanax.physics.collect import collect_random_rollouts
from galvanax.runs.checkpoint import Checkpoint
from galvanax.runs.export import export_safetensors
from galvanax.tasks.acceleration import AccelerationTask
from galvanax.tasks.dynaflow import DynaFlowTask, StateFlowTask
from galvanax.tasks.flow_matching import FlowMatchingTask
from galvanax.tasks.gru_dynamics import GRUDynamicsTask
from galvanax.tasks.learned_dynamics import GRUDynamics
from galvanax.tasks.policy_export import export_onnx, export_stablehlo, policy_metadata
from galvanax.tasks.ppo import PPOTask
from galvanax.tasks.task import Task
from galvanax.trainer import processes as distributed
from galvanax.trainer.run import FitResult, Run
from galvanax.trainer.schedule import Epochs, Minutes, Steps
from galvanax.trainer.state import TrainState
from galvanax.trainer.strategy import FSDP, DataParallel, Partitioned
from galvanax.trainer.trainer import Trainer

__all__ = [
    "EMA",
    "FSDP",
    "AccelerationTask",
    "ArrayDataModule",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Choice",
    "ConfigError",
    "DataError",
    "DataModule",
    "DataParallel",
    "DynaFlowTask",
    "DynamicsDataModule",
    "DynamicsDataset",
    "EarlyStopping",
    "EnvironmentDataModule",
    "Epochs",
    "Experiment",
    "FitResult",
    "FlowMatchingTask",
    "Freeze",
    "GRUDynamics",
    "GRUDynamicsTask",
    "GalvanaxError",
    "GradientAccumulation",
    "GradientClipping",
    "Identification",
    "Minutes",
    "ModelSummary",
    "MotionDataModule",
    "NonFiniteError",
    "PPOTask",
    "Partitioned",
    "Preempted",
    "ProcessError",
    "ProgressBar",
    "Range",
    "RenderError",
    "RolloutDataModule",
    "Run",
    "RunDirError",
    "StateFlowTask",
    "Statistics",
    "Steps",
    "Task",
    "TensorBoardLogger",
    "TrainState",
    "Trainer",
    "Trajectory",
    "TrajectoryDataModule",
    "Tuning",
    "VideoRecorder",
    "WandBLogger",
    "WarmStart",
    "collect_random_rollouts",
    "create_dataset",
    "distributed",
    "envs",
    "export_onnx",
    "export_safetensors",
    "export_stablehlo",
    "identify",
    "load_experiment",
    "networks",
    "physics",
    "policy_metadata",
    "read_trajectories",
    "rendering",
    "set_parameters",
    "split_dataset",
    "tune",
]
