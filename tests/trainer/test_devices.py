"""A run moves from 8 devices to 1, 4, 2 and back: the same batches, the same noise, the same losses but for rounding.

The devices are CPU threads (`--xla_force_host_platform_device_count`), in processes of their own.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))  # for the children

from support import NetTask, fingerprints, net_data  # noqa: E402

import galvanax as gx  # noqa: E402

STEPS = 44
MOVES = ((8, 13), (1, 27), (4, 33), (2, 38), (8, STEPS))  # devices, until step; an epoch has 10 steps
TOLERANCE = 1e-5  # sums over a batch in another order, carried on by 44 steps of Adam; measured: 2.5e-7


@dataclasses.dataclass(frozen=True)
class RowsTask(NetTask):
    """NetTask that also says exactly which rows it saw, in which order, and with which noise."""

    def loss(self, model, batch, rng):
        loss, metrics = super().loss(model, batch, rng)
        return loss, {**metrics, **fingerprints(batch, rng)}


class Steps(gx.Callback):
    """Keeps the metrics of every step, and is told to go at one."""

    def __init__(self, until):
        self.until, self.metrics = until, {}

    def next_step(self, step):
        return self.until if step < self.until < STEPS else None

    def on_step(self, run):
        os.kill(os.getpid(), signal.SIGTERM)

    def on_train_metrics(self, run, steps, metrics):
        for index, step in enumerate(steps):
            self.metrics[step] = {name: float(rows[index]) for name, rows in metrics.items()}


def data_with_rows(batch_size: int = 32) -> gx.ArrayDataModule:
    """NetTask's data with the number of each row."""
    data = net_data(batch_size=batch_size)
    data.train["row"] = np.arange(len(data.train["x"]), dtype=np.int32)
    data.val["row"] = np.arange(len(data.val["x"]), dtype=np.int32)
    data.test = None
    return data


def part(folder: Path, name: str, devices: int, until: int) -> dict[int, dict[str, float]]:
    """Trains on so many devices until a step, where it leaves a checkpoint."""
    steps = Steps(until)
    saving = [gx.GradientClipping(1.0), gx.EMA(0.9), gx.CSVLogger(), gx.Checkpoint(every=gx.Steps(1000)), steps]
    trainer = gx.Trainer(max_steps=STEPS, run_dir=folder / name, devices=devices, log_every=4, callbacks=saving)
    try:
        trainer.fit(RowsTask(), data_with_rows(), resume="auto")
    except gx.Preempted:
        print(f"preempted at step {until}")
    assert max(steps.metrics) == until
    return steps.metrics


def main(folder: Path, count: int, parts: list) -> None:
    """Runs parts in a process with so many devices; writes what each step measured."""
    assert jax.device_count() == count
    for index, (name, devices, until) in enumerate(parts):
        (folder / f"{name}-{until}.json").write_text(json.dumps(part(folder, name, devices, until)))
        if index == 0 and count == 8:
            refused = None
            try:
                gx.Trainer(max_steps=1).fit(RowsTask(), data_with_rows(batch_size=30))
            except gx.ConfigError as error:
                refused = str(error)
            (folder / "refused.json").write_text(json.dumps(refused))


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Metrics of each step, by run."""
    folder = tmp_path_factory.mktemp("runs")
    lives = [
        (8, [("all on 8", 8, STEPS), ("moved", *MOVES[0])]),
        (1, [("all on 1", 1, STEPS), ("moved", *MOVES[1])]),
        (4, [("moved", *MOVES[2]), ("moved", *MOVES[3])]),
        (8, [("moved", *MOVES[4])]),
    ]
    for count, parts in lives:
        flags = f"--xla_force_host_platform_device_count={count}"
        path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, __file__, str(folder), str(count), json.dumps(parts)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    found: dict = {"folder": folder, "refused": json.loads((folder / "refused.json").read_text())}
    for name in ("all on 1", "all on 8", "moved"):
        pieces = [json.loads(path.read_text()) for path in folder.glob(f"{name}-*.json")]
        assert sum(map(len, pieces)) == STEPS
        found[name] = {int(step): metrics for piece in pieces for step, metrics in piece.items()}
    return found


@pytest.mark.parametrize("run", ["all on 8", "moved"])
def test_sees_the_same_batches_and_the_same_noise(losses, run):
    exact = ("rows", "order", "squares", "noise_max", "noise_min", "noise_first")
    for step in range(1, STEPS + 1):
        one, other = losses["all on 1"][step], losses[run][step]
        assert {name: one[f"train/{name}"] for name in exact} == {name: other[f"train/{name}"] for name in exact}, step
    assert len({metrics["train/order"] for metrics in losses[run].values()}) == STEPS


@pytest.mark.behaviour("peers 148")
@pytest.mark.parametrize("run", ["all on 8", "moved"])
@pytest.mark.parametrize("metric", ["train/loss", "train/mae", "train/grad_norm"])
def test_has_the_same_losses(losses, run, metric):
    one, other = (np.array([losses[name][step][metric] for step in range(1, STEPS + 1)]) for name in ("all on 1", run))
    print(f"\n{metric}, {run}: largest relative difference {np.max(np.abs(other / one - 1)):.1e}")
    np.testing.assert_allclose(other, one, rtol=TOLERANCE)


@pytest.mark.behaviour("peers 148")
def test_has_the_same_weights_in_the_end(losses):
    runs = [losses["folder"] / name for name in ("all on 1", "all on 8", "moved")]
    models = [nnx.state(RowsTask.load(run, "last")[1], nnx.Param) for run in runs]
    one, *others = ({"/".join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(model)} for model in models)
    # Batch normalisation makes this bias idle: its gradient is nothing but rounding, which Adam turns into full steps.
    assert "first/bias" in one
    for name in one.keys() - {"first/bias"}:
        for other in others:
            np.testing.assert_allclose(other[name], one[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_moved_run_logs_each_step_once(losses):
    tables = [(losses["folder"] / name / "metrics.csv").read_text().splitlines() for name in ("all on 1", "moved")]
    steps = [[line.split(",")[0] for line in table] for table in tables]
    assert steps[0] == steps[1]


def test_a_batch_that_cannot_be_split(losses):
    assert "30 rows cannot be split over 8 devices" in losses["refused"]
    assert "24, 32" in losses["refused"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
