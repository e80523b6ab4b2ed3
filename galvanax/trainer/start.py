"""How a run starts: everything is checked and traced before anything is compiled or written."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from galvanax.callbacks.callback import Callback, name_callbacks
from galvanax.datamodules.datamodule import DataModule
from galvanax.errors import ConfigError, nearest
from galvanax.runs import config
from galvanax.runs.arrays import describe, name_leaves
from galvanax.runs.checkpoint import Checkpoint
from galvanax.runs.checkpoints import CheckpointFolder, check_task, verified_meta
from galvanax.runs.run_folder import check_free, prepare_folder, run_path
from galvanax.runs.weights import load_model
from galvanax.tasks.task import Task
from galvanax.trainer import placement, processes, rendezvous
from galvanax.trainer.batch import batch_bytes
from galvanax.trainer.checks import check_parts
from galvanax.trainer.compile_cache import enable_compile_cache
from galvanax.trainer.data_axis import in_mesh
from galvanax.trainer.devices import Devices
from galvanax.trainer.evaluation import Evaluator
from galvanax.trainer.feed import EvaluationFeed, TrainFeed, check_divisible
from galvanax.trainer.optimizer import chain_optimizer
from galvanax.trainer.pace import Pace
from galvanax.trainer.programs import INIT, TRAIN, lower_train_program, stream_key, train_program
from galvanax.trainer.resume import Resume, find_resume
from galvanax.trainer.run import Run
from galvanax.trainer.schedule import Epochs, Steps, check_interval
from galvanax.trainer.settings import TrainerSettings
from galvanax.trainer.splits import check_splits
from galvanax.trainer.state import Arrays, ModelDef, TrainState

log = logging.getLogger("galvanax")

STACK, STACK_BYTES = 64, 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run of which nothing has been computed yet: all shapes are known, and where everything will lie.

    Attributes:
      task: with the fields that the data decided.
      callbacks: by name.
      devices: where.
      feed: the training batches.
      num_steps: the step at which the run ends.
      capacity: steps that one dispatch can hold.
      definition: the model.
      create: see `_creator`.
      state: abstract; its leaves say how they lie on the devices.
      program: the training program, not compiled.
      metric_names: what the training program measures.
    """

    task: Task
    callbacks: dict[str, Callback]
    devices: Devices
    feed: TrainFeed
    num_steps: int
    capacity: int
    definition: ModelDef
    create: Callable[[Arrays, Arrays, jax.Array], TrainState]
    state: TrainState
    program: Any
    metric_names: list[str]

    def lower(self) -> jax.stages.Lowered:
        """The training program, to compile it and look at it."""
        return lower_train_program(self.program, self.state, self.feed.spec, self.capacity, self.devices)


def plan_run(trainer: TrainerSettings, task: Task, data: DataModule, devices: Devices) -> Plan:
    """Sets the data up, reads one batch, traces the step. Raises as `Trainer.fit` does."""
    processes.main_first("data", data.setup)
    task = task.setup(data)
    callbacks = name_callbacks(all_callbacks(trainer))
    dataset = data.train_dataset(trainer.seed)
    check_splits(dataset, data)
    feed = TrainFeed(dataset, trainer.limit_train_batches)
    num_steps = _count_steps(trainer, feed)
    definition = _definition(trainer, task)
    create = _creator(task, data, callbacks, definition, num_steps, devices)
    abstract = jax.eval_shape(lambda key: create(*definition.init(key), key), stream_key(trainer.seed, INIT))
    state = devices.place(abstract, task.carry_specs(abstract.carry))
    if warning := devices.strategy.warning(state.params, dict(devices.mesh.shape)):
        log.warning("%s", warning)
    capacity = _choose_capacity(trainer, feed, num_steps)
    program, names = train_program(task, callbacks, state, feed.spec, capacity, devices)
    check_divisible(feed.batch_size, devices.shards)  # after the task, which may know what a row is
    feed.place(capacity, devices.stacked)
    return Plan(
        task, callbacks, devices, feed, num_steps, capacity, definition, create, state, program,
        [f"train/{name}" for name in names],
    )  # fmt: skip


def start_run(trainer: TrainerSettings, task: Task, data: DataModule, resume: str | int | Path | None) -> Run:
    """Checks everything, builds the state and the programs, prepares the run folder. Raises as `Trainer.fit` does."""
    check_parts(trainer, task, data)
    check_settings(trainer)
    enable_compile_cache()
    devices = Devices.choose(trainer.devices, trainer.strategy)
    processes.check_machines(trainer.num_nodes)
    rendezvous.check_mesh(devices.mesh)

    settings = config.to_json(data)  # before setup, which may fill fields with arrays
    processes.check_same({"resume": None if resume is None else str(resume), **_describe(trainer, task, settings)})
    resumed = find_resume(trainer, type(task).__name__, resume)
    plan = plan_run(trainer, task, data, devices)
    task = plan.task
    evaluator = evaluator_for(trainer, task, plan.definition, data, devices, "val", trainer.limit_val_batches)
    metric_names = plan.metric_names + (evaluator.metric_names if evaluator else [])
    for name, callback in plan.callbacks.items():
        _check_monitor(name, getattr(callback, "monitor", None), metric_names)
    run_config = _describe(trainer, task, settings)
    processes.check_same({"task": run_config["task"], "data": _describe_data(plan), "steps": plan.num_steps})
    if resumed is not None:
        resumed.check_end(plan.num_steps)
    elif not trainer.overwrite and resume != "auto":
        processes.from_main("folder is free", lambda: check_free(trainer.run_dir))
    # The weights first, and then the folder: a warm start may find nothing to start from, or start from what it clears.
    state = _create_state(trainer, plan, data) if resumed is None else _load_state(resumed, trainer, plan, run_config)
    run_dir = _prepare_folder(trainer, resumed)

    run = Run(
        trainer=trainer,
        task=task,
        datamodule=data,
        callbacks=plan.callbacks,
        run_dir=run_dir,
        devices=devices,
        feed=plan.feed,
        num_steps=plan.num_steps,
        pace=Pace(plan.capacity, fixed=trainer.steps_per_dispatch is not None),
        program=plan.program,
        evaluator=evaluator,
        state=state,
        key=placement.put(stream_key(trainer.seed, TRAIN), devices.replicated),
        metric_names=metric_names,
        config=run_config,
    )
    if resumed is not None:
        host, prolonged = resumed.host_states(run_config), resumed.prolonged(run_config, plan.num_steps)
        run.restore(state, resumed.meta, host, prolonged)
    return run


def all_callbacks(trainer: TrainerSettings) -> list[Callback]:
    """The Trainer's callbacks, and a plain Checkpoint where it has a folder and none is among them."""
    given = list(trainer.callbacks)
    own = any(isinstance(callback, Checkpoint) for callback in given)
    return given if own or not trainer.checkpoint or trainer.run_dir is None else [*given, Checkpoint()]


def _describe(trainer: TrainerSettings, task: Task, data: dict[str, Any]) -> dict[str, Any]:
    """JSON of everything that a run was made of."""
    settings = config.to_json(dataclasses.replace(trainer, callbacks=()))
    settings["strategy"] = config.to_json(trainer.strategy)  # with its type
    return {
        "task": config.to_json(task),
        "data": data,
        "trainer": {name: value for name, value in settings.items() if name != "callbacks"},
        "callbacks": {
            name: {"class": f"{type(one).__module__}.{type(one).__qualname__}", **config.to_json(one)}
            for name, one in name_callbacks(all_callbacks(trainer)).items()
        },
        "versions": config.versions(),
    }


def evaluator_for(
    trainer: TrainerSettings,
    task: Task,
    definition: ModelDef,
    data: DataModule,
    devices: Devices,
    split: str,
    limit: int | None,
) -> Evaluator | None:
    """The evaluator of a split of the data, or None where the data has none."""
    dataset = getattr(data, f"{split}_dataset")()
    if dataset is None:
        return None
    feed = EvaluationFeed(dataset, limit, devices.shards, split)
    return Evaluator(task, definition, feed, devices, trainer.seed, split)


def weights_for(
    trainer: TrainerSettings, task: Task, checkpoint: str | Path, model: nnx.Module | None
) -> tuple[ModelDef, Arrays, Arrays]:
    """`(definition, params, variables)` of a checkpoint, or of `model` where one is given."""
    definition = _definition(trainer, task)
    if model is None:
        if trainer.run_dir is None and str(checkpoint) in ("best", "last"):
            raise ConfigError(f'checkpoint="{checkpoint}" needs the Trainer\'s run_dir; or give a path, or model=.')
        folder = CheckpointFolder(trainer.run_dir or ".").find(checkpoint)
        meta = verified_meta(folder)
        check_task(folder, meta, type(task).__name__)
        model = load_model(definition, folder, meta)
    return definition, *definition.split(model)


def check_settings(trainer: TrainerSettings) -> None:
    """Raises ConfigError for a setting that makes no sense."""
    if trainer.max_epochs is None and trainer.max_steps is None:
        raise ConfigError("The Trainer has neither max_epochs nor max_steps: say when the run ends.")
    check_shared_settings(trainer)
    check_interval("Trainer.val_every", trainer.val_every, (Steps, Epochs))
    if not trainer.checkpoint and any(isinstance(callback, Checkpoint) for callback in trainer.callbacks):
        raise ConfigError("Trainer.checkpoint=False, but there is a Checkpoint among its callbacks: choose one.")
    for callback in trainer.callbacks:
        if callback.writes_files and trainer.run_dir is None:
            raise ConfigError(f"{type(callback).__name__} writes files: give the Trainer a run_dir.")


def check_shared_settings(trainer: TrainerSettings) -> None:
    """As `check_settings`, for what evaluation reads as well as training."""
    for name in (
        "max_epochs",
        "max_steps",
        "log_every",
        "steps_per_dispatch",
        *(f"limit_{s}_batches" for s in ("train", "val", "test", "predict")),
    ):
        value = getattr(trainer, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"Trainer.{name}={value!r}: expected a whole number of at least 1.")
    if trainer.precision not in ("float32", "bfloat16"):
        raise ConfigError(f'Trainer.precision={trainer.precision!r}: expected "float32" or "bfloat16".')


def _definition(trainer: TrainerSettings, task: Task) -> ModelDef:
    return ModelDef(task.build_model, jnp.bfloat16 if trainer.precision == "bfloat16" else None)


def _count_steps(trainer: TrainerSettings, feed: TrainFeed) -> int:
    limits = [] if trainer.max_steps is None else [trainer.max_steps]
    if trainer.max_epochs is not None:
        if feed.steps_per_epoch is None:
            raise ConfigError(
                "Trainer.max_epochs was given, but the training data is a stream with no length: "
                "give max_steps, or limit_train_batches."
            )
        limits.append(trainer.max_epochs * feed.steps_per_epoch)
    return min(limits)


def _choose_capacity(trainer: TrainerSettings, feed: TrainFeed, num_steps: int) -> int:
    if trainer.steps_per_dispatch is not None:
        return trainer.steps_per_dispatch
    return max(1, min(STACK, num_steps, STACK_BYTES // max(1, batch_bytes(feed.spec))))


def _creator(
    task: Task,
    data: DataModule,
    callbacks: dict[str, Callback],
    definition: ModelDef,
    num_steps: int,
    devices: Devices,
) -> Callable[[Arrays, Arrays, jax.Array], TrainState]:
    """A traceable `create(params, variables, key)`: the state at step 0, around these weights."""
    optimizer = devices.reducing(chain_optimizer(task, callbacks, num_steps))

    def create(params: Arrays, variables: Arrays, key: jax.Array) -> TrainState:
        # Copies, since the state is donated, and whoever gave the weights may keep them.
        params, variables = jax.tree.map(jnp.copy, (params, variables))
        slots = {name: callback.init_slot(params) for name, callback in callbacks.items()}
        with in_mesh(devices.mesh):
            carry = task.init_carry(jax.random.split(key)[1], data)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            variables=variables,
            opt_state=optimizer.init(params),
            carry=carry,
            slots={name: slot for name, slot in slots.items() if slot is not None},
            definition=definition,
            optimizer=optimizer,
        )

    return create


def _create_state(trainer: TrainerSettings, plan: Plan, data: DataModule) -> TrainState:
    """A fresh run's state: its weights as statistics and callbacks set them, then everything that starts from them."""
    definition, devices = plan.definition, plan.devices

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return definition.init(jax.random.split(key)[0])

    key = placement.put(stream_key(trainer.seed, INIT), devices.replicated)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, plan.state)
    placed = (shardings.params, shardings.variables)
    weights = jax.jit(init, out_shardings=placed)(key)
    model = definition.merge(weights[0], placement.local(weights[1]))
    plan.task.set_statistics(model, data)
    weights = (weights[0], definition.split(model)[1])
    for name, callback in plan.callbacks.items():
        changed = callback.init_params(*weights)
        _check_weights(name, weights, changed)
        weights = changed
    return jax.jit(plan.create, out_shardings=shardings)(*placement.put(weights, placed), key)


def _check_weights(callback: str, before: tuple[Arrays, Arrays], after: tuple[Arrays, Arrays]) -> None:
    for old, new in zip(before, after, strict=True):
        if old.keys() != new.keys():
            raise ConfigError(
                f"{callback}.init_params changed which weights there are: {', '.join(sorted(old.keys() ^ new.keys()))}."
            )
        for path, leaf in old.items():
            if (leaf.shape, leaf.dtype) != (new[path].shape, new[path].dtype):
                raise ConfigError(
                    f"{callback}.init_params changed {path} from {leaf.dtype}{list(leaf.shape)} "
                    f"to {new[path].dtype}{list(new[path].shape)}."
                )


def _load_state(resumed: Resume, trainer: TrainerSettings, plan: Plan, run_config: dict[str, Any]) -> TrainState:
    """A resumed run's state: what its checkpoint has of it, and the rest made anew around those weights."""

    def create(params: Arrays, variables: Arrays) -> TrainState:
        key = placement.put(stream_key(trainer.seed, INIT), plan.devices.replicated)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, plan.state)
        return jax.jit(plan.create, out_shardings=shardings)(params, variables, key)

    if processes.is_main():
        resumed.warn_of_changes(run_config)
    return resumed.load(plan.state, run_config, create)


def _check_monitor(callback: str, monitor: str | None, names: list[str]) -> None:
    if monitor is not None and monitor not in names:
        raise ConfigError(f"{callback} monitors {monitor!r}, which is no metric of this run.{nearest(monitor, names)}")


def _prepare_folder(trainer: TrainerSettings, resumed: Resume | None) -> Path | None:
    """Makes the run's folder ready, before callbacks cut logs: a kill between the two must not lose their rows."""
    if trainer.run_dir is None:
        return None
    run_dir = run_path(trainer.run_dir)
    processes.from_main("folder", lambda: prepare_folder(run_dir, clear=resumed is None))
    if any(isinstance(callback, Checkpoint) for callback in all_callbacks(trainer)):
        step = 0 if resumed is None else resumed.meta.step
        processes.from_main("checkpoints", lambda: CheckpointFolder(run_dir).prepare(step))
    processes.check_shared(run_dir)
    return run_dir


def _describe_data(plan: Plan) -> dict[str, Any]:
    return {name: describe(leaf) for name, leaf in name_leaves(plan.feed.spec).items()}
