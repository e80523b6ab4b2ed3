"""The runs that are changed, and everything that reads a run folder."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import LineTask, NetTask, line_data, net_data

import galvanax as gx
from galvanax.cli.main import main

MIDDLE, SAVED, END = 20, 30, 40
PENDULUM = [
    "pendulum", "--data.num-rollouts", "10", "--data.rollout-length", "20", "--task.hidden-dims", "8",
    "--data.batch-size", "16", "--trainer.val-every", "steps:2", "--callbacks.checkpoint.keep-last", "3",
]  # fmt: skip
PPO = [
    "cartpole-ppo", "--task.unroll-length", "4", "--task.num-minibatches", "1", "--task.num-epochs", "1",
    "--task.policy-hidden", "8", "--task.value-hidden", "8", "--data.num-envs", "4", "--data.num-eval-episodes", "2",
    "--data.episode-length", "10", "--trainer.val-every", "steps:1", "--callbacks.checkpoint.keep-last", "3",
]  # fmt: skip
FLOW = [
    "pendulum-stateflow", "--task.d-model", "8", "--task.num-heads", "2", "--task.depth", "1",
    "--task.num-samples", "2", "--task.ode-steps", "2", "--data.batch-size", "8", "--trainer.val-every", "epochs:1",
    "--callbacks.checkpoint.keep-last", "3",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reader:
    """Something that reads a run folder: `read(rng, run, out)`, where `out` is a folder for its output.

    Attributes:
      name: what it is called.
      read: reads.
      writes: names in the run's folder that it may change.
      trains: whether it is a fit, which may do more.
    """

    name: str
    read: Callable[[random.Random, Path, Path], Any]
    writes: tuple[str, ...] = ()
    trains: bool = False


def command(*words: Any) -> None:
    """Runs `galvanax`."""
    main([str(word) for word in words])


def net_trainer(run: Path | None, **changes: Any) -> gx.Trainer:
    """Of the runs that Python starts."""
    saving = gx.Checkpoint(monitor="val/loss", mode="min", every=gx.Steps(5), keep_best=1, keep_last=3)
    callbacks = [gx.EMA(0.9), gx.CSVLogger(), gx.TensorBoardLogger(), saving]
    return gx.Trainer(**{"max_steps": END, "run_dir": run, "log_every": 4, "callbacks": callbacks, **changes})


class Crash(gx.Callback):
    """Ends a run after its save at a step."""

    runs_last = True

    def next_step(self, step):
        return SAVED if step < SAVED else None

    def on_step(self, run):
        writer = next(one for one in run.callbacks.values() if isinstance(one, gx.Checkpoint))._writer
        writer.close()
        raise KeyboardInterrupt


def make_net(run: Path, task: gx.Task | None = None, data: gx.DataModule | None = None) -> None:
    """A run that has not come to its end."""
    trainer = net_trainer(run)
    try:
        net_trainer(run, callbacks=[*trainer.callbacks, Crash()]).fit(task or NetTask(), data or net_data())
    except KeyboardInterrupt:
        return
    raise AssertionError("it has not crashed")


def make_line(run: Path) -> None:
    """The same of another task."""
    make_net(run, LineTask(), line_data())


def make_pendulum(run: Path) -> None:
    """By the command; evaluated."""
    command("fit", *PENDULUM, "--trainer.run-dir", run, "--trainer.max-steps", 6)


def make_ppo(run: Path) -> None:
    """By the command; one that has played."""
    command("fit", *PPO, "--trainer.run-dir", run, "--trainer.max-steps", 3, "--no-evaluate")
    play(random.Random(0), run, run)


def make_flow(run: Path) -> None:
    """By the command, on a few motions, which lie beside it."""
    from galvanax.experiments.dynaflow import write_two_way_pendulum

    motions = run.with_name("motions.npz")
    write_two_way_pendulum(motions, num_trajectories=60)
    flags = ["--data", motions, "--trainer.run-dir", run, "--trainer.max-epochs", 3, "--no-evaluate"]
    command("fit", *FLOW, *flags)


def motions_of(run: Path) -> Path:
    """The motions of the original that a mutant is a copy of; config.json may say anything of them."""
    return run.parents[2] / "originals" / "flow" / "motions.npz"


def a_checkpoint(rng: random.Random, run: Path, *more: str) -> str:
    """What a user may ask for."""
    steps = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    return rng.choice(["best", "best", "last", "last", *more, *map(str, steps), *(path.name for path in steps)])


# In Python.


def load(rng: random.Random, run: Path, out: Path) -> None:
    use(NetTask.load(run, a_checkpoint(rng, run), averaged=rng.random() < 0.7)[1], net_data())


def use(model: Any, data: gx.ArrayDataModule) -> None:
    """A model that was loaded must work."""
    model(data.val["x"])


def warm_start(rng: random.Random, run: Path, out: Path) -> None:
    source: Path | str = run
    steps = sorted((run / "checkpoints").glob("[0-9]*"))
    if steps and rng.random() < 0.3:
        source = rng.choice(steps)
    warm = gx.WarmStart(source, rng.choice(["best", "last", str(SAVED)]))
    gx.Trainer(max_steps=1, callbacks=[warm]).fit(NetTask(), net_data(rows=32, val=8))


def validate(rng: random.Random, run: Path, out: Path) -> None:
    net_trainer(run).validate(NetTask(), net_data(), checkpoint=a_checkpoint(rng, run))


def export_api(rng: random.Random, run: Path, out: Path) -> None:
    gx.export_safetensors(run, out / "weights.safetensors", a_checkpoint(rng, run))


def fit(rng: random.Random, run: Path, out: Path) -> None:
    resume: str | int = rng.choice(["auto", "auto", "auto", "last", "best", MIDDLE, SAVED])
    net_trainer(run).fit(NetTask(), net_data(), resume=resume)


def load_line(rng: random.Random, run: Path, out: Path) -> None:
    use(LineTask.load(run, a_checkpoint(rng, run))[1], line_data())


def fit_line(rng: random.Random, run: Path, out: Path) -> None:
    net_trainer(run).fit(LineTask(), line_data(), resume=rng.choice(["auto", "last"]))


# By the command.


def evaluate(rng: random.Random, run: Path, out: Path) -> None:
    command("evaluate", run, "--checkpoint", a_checkpoint(rng, run), "--num-examples", 2)


def evaluate_samples(rng: random.Random, run: Path, out: Path) -> None:
    flags = ["--num-examples", 2, "--num-samples", 2, "--ode-steps", 2]
    command("evaluate", run, "--checkpoint", a_checkpoint(rng, run), *flags)


def export(rng: random.Random, run: Path, out: Path) -> None:
    command("export", run, "--output", out / "weights.safetensors", "--checkpoint", a_checkpoint(rng, run))


def export_policy(rng: random.Random, run: Path, out: Path) -> None:
    command("export", run, "--output", out / f"policy{rng.choice(['.onnx', '.onnx', '.jax'])}")


def play(rng: random.Random, run: Path, out: Path) -> None:
    command("play", run, "--formats", "--num-episodes", 2, "--num-steps", 3, "--checkpoint", a_checkpoint(rng, run))


def collect(rng: random.Random, run: Path, out: Path) -> None:
    flags = ["--num-episodes", 2, "--num-envs", 2, "--episode-length", 3, "--keep-short", "--overwrite"]
    command("collect", run, "--output", out / "motions.npz", *flags)


def sample(rng: random.Random, run: Path, out: Path) -> None:
    start = rng.choice([[], ["--x0", 0.1, 0]])
    flags = ["--num-samples", 2, "--ode-steps", 2, "--overwrite", "--checkpoint", a_checkpoint(rng, run)]
    command("sample", run, *start, "--output", out / "samples.npz", *flags)


def fit_command(experiment: list[str], *flags: Any) -> Callable[[random.Random, Path, Path], None]:
    """`galvanax fit ... --resume`."""

    def read(rng: random.Random, run: Path, out: Path) -> None:
        more = ["--data", motions_of(run)] if experiment is FLOW else []
        resume = rng.choice([["--resume"], ["--resume", "auto"], ["--resume", "auto"], ["--resume", "best"]])
        evaluated = [] if experiment is PENDULUM and rng.random() < 0.3 else ["--no-evaluate"]
        command("fit", *experiment, "--trainer.run-dir", run, *flags, *more, *resume, *evaluated)

    return read


EVALUATIONS, PLAY = ("evaluations",), ("play",)
RUNS: dict[str, tuple[Callable[[Path], None], list[Reader]]] = {
    "net": (
        make_net,
        [
            Reader("load", load),
            Reader("warm start", warm_start),
            Reader("validate", validate),
            Reader("export in Python", export_api),
            Reader("fit in Python", fit, trains=True),
        ],
    ),
    "line": (make_line, [Reader("load", load_line), Reader("fit in Python", fit_line, trains=True)]),
    "pendulum": (
        make_pendulum,
        [
            Reader("evaluate", evaluate, EVALUATIONS),
            Reader("export", export),
            Reader("play", play, PLAY),
            Reader("sample", sample),
            Reader("fit", fit_command(PENDULUM, "--trainer.max-steps", 8), trains=True),
        ],
    ),
    "ppo": (
        make_ppo,
        [
            Reader("evaluate", evaluate, EVALUATIONS),
            Reader("export", export),
            Reader("export a policy", export_policy),
            Reader("play", play, PLAY),
            Reader("collect", collect),
            Reader("fit", fit_command(PPO, "--trainer.max-steps", 4), trains=True),
        ],
    ),
    "flow": (
        make_flow,
        [
            Reader("evaluate", evaluate_samples, EVALUATIONS),
            Reader("export", export),
            Reader("sample", sample),
            Reader("fit", fit_command(FLOW, "--trainer.max-epochs", 4), trains=True),
        ],
    ),
}
SHARES = {"net": 9, "line": 1, "pendulum": 4, "ppo": 3, "flow": 3}


def make_original(name: str, folder: Path) -> Path:
    """Makes a run that is to be copied and changed; returns its folder."""
    run = folder / "originals" / name / "run"
    if not run.exists():
        run.parent.mkdir(parents=True, exist_ok=True)
        RUNS[name][0](run)
    return run


def make_outside(outside: Path, original: Path) -> None:
    """What lies outside of a run's folder and must stay as it is."""
    shutil.rmtree(outside, ignore_errors=True)
    (outside / "folder").mkdir(parents=True)
    (outside / "secret.txt").write_text("mine\n")
    (outside / "secret.json").write_text(json.dumps({"mine": 1}))
    (outside / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    shutil.copytree(original, outside / "run")
