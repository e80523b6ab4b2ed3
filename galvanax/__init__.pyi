from . import distributed, envs, networks, physics, rendering
from .callbacks.callback import Callback
from .callbacks.csv_logger import CSVLogger
from .callbacks.early_stopping import EarlyStopping
from .callbacks.ema import EMA
from .callbacks.freeze import Freeze
from .callbacks.gradient_accumulation import GradientAccumulation
from .callbacks.gradient_clipping import GradientClipping
from .callbacks.model_summary import ModelSummary
from .callbacks.progress_bar import ProgressBar
from .callbacks.run_view import RunView
from .callbacks.tensorboard_logger import TensorBoardLogger
from .callbacks.video_recorder import VideoRecorder
from .callbacks.wandb_logger import WandBLogger
from .callbacks.warm_start import WarmStart
from .datamodules.arrays import ArrayDataModule
from .datamodules.datamodule import DataModule, Statistics
from .datamodules.dynamics import DynamicsDataModule, DynamicsDataset, create_dataset, split_dataset
from .datamodules.environment import EnvironmentDataModule
from .datamodules.motions import MotionDataModule
from .datamodules.rollouts import RolloutDataModule
from .datamodules.trajectories import TrajectoryDataModule
from .datamodules.trajectory_files import read_trajectories
from .datamodules.trajectory_table import Trajectory
from .errors import (
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
from .experiments.experiment import Experiment, load_experiment
from .experiments.tuning import Choice, Range, Tuning, tune
from .identification.identification import Identification
from .identification.identify import identify
from .identification.parameters import set_parameters
from .physics.collect import collect_random_rollouts
from .runs.checkpoint import Checkpoint
from .runs.export import export_safetensors
from .tasks.acceleration import AccelerationTask
from .tasks.dynaflow import DynaFlowTask, StateFlowTask
from .tasks.flow_matching import FlowMatchingTask
from .tasks.gru_dynamics import GRUDynamicsTask
from .tasks.learned_dynamics import GRUDynamics
from .tasks.policy_export import export_onnx, export_stablehlo, policy_metadata
from .tasks.ppo import PPOTask
from .tasks.task import Task
from .trainer.result import FitResult
from .trainer.schedule import Epochs, Minutes, Steps
from .trainer.state import TrainState
from .trainer.strategy import FSDP, DataParallel, Partitioned
from .trainer.trainer import Trainer

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
    "RunDirError",
    "RunView",
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
