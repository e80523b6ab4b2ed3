"""One life of a run in a process of its own, for tests that end it from outside.

    python tests/stress/child.py --folder RUN_FOLDER --task net --num-steps 3000

`Life` starts it from a test. Its standard output says where it is, a line each: `start` (imports are done), `steps`
(the first dispatch has come back), `validation`, `steps` again, `end`, `bye`; and `stopped STEP` after an exception.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

TESTS = Path(__file__).parents[1]


@dataclasses.dataclass
class Life:
    """A child process that fits, as its parent sees it.

    Attributes:
      process: the child.
      log: the file of its standard output and error.
    """

    process: subprocess.Popen
    log: Path

    @classmethod
    def begin(cls, folder: Path, *arguments: str, log: Path, **environment: str) -> "Life":
        """Starts a child on a run folder; `arguments` are `main`'s flags."""
        command = [sys.executable, __file__, "--folder", str(folder), *arguments]
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **environment}
        with log.open("wb") as file:
            # A child inherits an ignored SIGINT, which a shell gives to background jobs.
            restore = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)
            finally:
                signal.signal(signal.SIGINT, restore)
        return cls(process, log)

    def __enter__(self) -> "Life":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def said(self) -> list[str]:
        """The lines that it has printed so far."""
        return self.text.splitlines()

    @property
    def phase(self) -> str:
        """Where it was when it last said so; before its first word, `import`."""
        known = [line for line in self.said if line in ("start", "steps", "validation", "end", "bye")]
        return known[-1] if known else "import"

    def wait_for(self, line: str, seconds: float = 600.0) -> None:
        """Returns once the child has printed a line that begins so; fails when it ends without."""
        deadline = time.monotonic() + seconds
        while not any(said.startswith(line) for said in self.said):
            assert self.process.poll() is None, f"it ended without saying {line!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"it did not say {line!r} in {seconds} s:\n{self.text}"
            time.sleep(0.01)

    def end(self, number: int | None = None, seconds: float = 300.0) -> int:
        """Sends a signal, if one is given; returns the exit status (minus the signal's number, where one killed it)."""
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended {seconds} s after signal {number}:\n{self.text}") from None


def main(
    folder: str,
    task: Literal["net", "acceleration"] = "net",
    data: str = "",
    num_steps: int = 3000,
    steps_per_dispatch: int | None = None,
    save_every: int = 25,
    pause: float = 0.0,
    hang: float = 0.0,
    resume: Literal["auto", "none"] = "auto",
) -> None:
    """Fits until the end, or until somebody ends it.

    Args:
      folder: the run folder.
      task: `NetTask` of the tests' support, or `gx.AccelerationTask` on transitions of a file.
      data: that file, of `save_transitions`.
      num_steps: where the run ends.
      steps_per_dispatch: K; by default the Trainer's choice.
      save_every: steps between checkpoints.
      pause: seconds to sleep for each step, after the dispatch that it came in.
      hang: seconds to sleep after the first dispatch.
      resume: "none" for a fresh run.
    """
    from support import NetTask, net_data

    import galvanax as gx
    from galvanax.trainer.evaluation import Evaluator

    class Report(gx.Callback):
        """Prints where the run is, and slows it down."""

        def on_fit_start(self, run):
            self.first = True

        def on_train_metrics(self, run, steps, metrics):
            if self.first:
                print("steps", flush=True)
                time.sleep(hang)
            self.first = False
            time.sleep(pause * len(steps))

        def on_fit_end(self, run, result):
            print("end", flush=True)

        def on_exception(self, run, error):
            print(f"stopped {run.step}", flush=True)

    def evaluate(*arguments, **options):
        print("validation", flush=True)
        metrics = original(*arguments, **options)
        print("steps", flush=True)
        return metrics

    original, Evaluator.evaluate = Evaluator.evaluate, evaluate
    print("start", flush=True)
    trainer = gx.Trainer(
        max_steps=num_steps,
        run_dir=folder,
        seed=3,
        log_every=11,  # divides few steps at which anything is saved or validated
        val_every=gx.Steps(35),
        steps_per_dispatch=steps_per_dispatch,
        callbacks=[
            gx.GradientClipping(1.0),
            gx.EMA(0.99),
            gx.EarlyStopping("val/loss", mode="min", patience=10**6, min_delta=0.5),
            gx.CSVLogger(),
            gx.TensorBoardLogger(),
            gx.Checkpoint(monitor="val/loss", mode="min", keep_best=2, keep_last=2, every=gx.Steps(save_every)),
            Report(),
        ],
    )
    resumes = "auto" if resume == "auto" else None
    if task == "net":
        trainer.fit(NetTask(), net_data(rows=1000), resume=resumes)
    else:
        trainer.fit(gx.AccelerationTask(hidden_dims=(32, 32)), load_transitions(data), resume=resumes)
    print("bye", flush=True)


def save_transitions(path: Path) -> None:
    """Random motion of the pendulum as an NPZ file for `--data`."""
    import jax
    import numpy as np

    import galvanax as gx

    rollouts = gx.collect_random_rollouts(gx.physics.load_model("pendulum"), 40, 50, -1.0, 1.0, jax.random.key(0))
    np.savez(path, **{name: np.asarray(array) for name, array in rollouts._asdict().items()})


def load_transitions(path: str):
    """A `gx.DynamicsDataModule` of a file of `save_transitions`."""
    import numpy as np

    import galvanax as gx

    model = gx.physics.load_model("pendulum")
    with np.load(path) as arrays:
        dataset = gx.create_dataset(model, **arrays, dt=model.opt.timestep)
    train, val = gx.split_dataset(dataset)
    return gx.DynamicsDataModule(train, val, batch_size=64)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
