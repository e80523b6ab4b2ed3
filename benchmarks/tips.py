"""The older guides' tips for a model of dynamics that learns badly, each tried: what it does to the error.

    uv run python benchmarks/tips.py

A double cart-pole's GRU on few logs; each line changes one setting, the seed stays. The numbers are the last losses and
the best of validation, in units that all lines share (the error of states, h steps ahead divided by h, in deviations of
one step's change), and the seconds that training took. The last line has validation data of its own.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import galvanax as gx
from galvanax.cli.simulate import simulate


def run(logs: Path, epochs: int, batch_size: int = 64, history: int = 11, clip: float | None = 1.0, **settings):
    data = gx.TrajectoryDataModule(
        str(logs), system="double-cart-pole", history=history, horizon=9, batch_size=batch_size
    )
    task = gx.GRUDynamicsTask(absolute_coordinates=True, **settings)
    callbacks = [] if clip is None else [gx.GradientClipping(clip)]
    trainer = gx.Trainer(max_epochs=epochs, seed=1, callbacks=callbacks)
    begun = time.perf_counter()
    try:
        result = trainer.fit(task, data)
    except gx.NonFiniteError as error:
        return None, None, None, str(error)
    seconds = time.perf_counter() - begun
    losses = [row["val/loss"] for row in result.history if "val/loss" in row]
    train = [row["train/loss"] for row in result.history if "train/loss" in row]
    return train[-1], losses[-1], min(losses), f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--num-trajectories", type=int, default=40)
    arguments = parser.parse_args()
    default = gx.GRUDynamicsTask()
    hidden = next(field.name for field in dataclasses.fields(default) if field.name.startswith("hidden"))
    lines = {
        "as it is": {},
        f"{hidden} halved": {hidden: getattr(default, hidden) // 2},
        f"{hidden} doubled": {hidden: getattr(default, hidden) * 2},
        "learning_rate a tenth": {"learning_rate": default.learning_rate / 10},
        "learning_rate ten times": {"learning_rate": default.learning_rate * 10},
        "constant rate": {"learning_rate_schedule": "constant"},
        "weight_decay a hundred times": {"weight_decay": default.weight_decay * 100},
        "dropout 0.1": {"dropout": 0.1},
        "history 2": {"history": 2},
        "train_horizon 1": {"train_horizon": 1},
        "no clipping": {"clip": None},
        "no clipping, rate a hundred times": {"clip": None, "learning_rate": default.learning_rate * 100},
    }
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        for path, count in ((few, arguments.num_trajectories), (many, 4 * arguments.num_trajectories)):
            simulate(["double-cart-pole", "--output", str(path), "--num-trajectories", str(count), "--seed", "1"])
        print(f"{'':36s}{'train/loss':>12s}{'val/loss':>12s}{'best':>12s}")
        for name, settings in lines.items():
            report(name, run(few, arguments.epochs, **settings))
        report("four times the data, a quarter of the epochs", run(many, max(1, arguments.epochs // 4)))


def report(name: str, found: tuple) -> None:
    *losses, text = found
    shown = "".join(f"{loss:12.4g}" if loss is not None else f"{'-':>12s}" for loss in losses)
    print(f"{name:36s}{shown}   {text}", flush=True)


if __name__ == "__main__":
    main()
