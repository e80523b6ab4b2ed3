"""What a type checker says of a user's own code: nothing where it is right, the right thing where it isn't."""

import subprocess
import sys

import pytest

HEAD = """
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import galvanax as gx
"""
RIGHT = """
@dataclasses.dataclass(frozen=True)
class SpringTask(gx.Task[gx.networks.MLP]):
    hidden: int = 64
    learning_rate: float = 1e-3

    def build_model(self, rngs: nnx.Rngs) -> gx.networks.MLP:
        return gx.networks.MLP(2, (self.hidden,), 1, rngs=rngs)

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        return optax.adamw(self.learning_rate)

    def loss(self, model: gx.networks.MLP, batch: Any, rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        error = model(batch["x"]) - batch["y"]
        return jnp.mean(error**2), {"mae": jnp.abs(error).mean(-1)}


class Watch(gx.Callback):
    def on_step(self, run: gx.RunView) -> None:
        print(run.step, run.metrics["train/loss"], run.state.params)


def main(data: gx.DataModule) -> None:
    result = gx.Trainer(max_epochs=2, callbacks=[gx.EMA(0.9), Watch()]).fit(SpringTask(hidden=8), data)
    print(result.metrics["val/loss"], result.best_checkpoint)
    task, model = SpringTask.load("runs/spring")
    print(task.hidden, model(jnp.zeros((1, 2))))
"""
WRONG = """
class Wrong(gx.Task[gx.networks.MLP]):
    def build_model(self, rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(2, 1, rngs=rngs)

    def loss(self, model: gx.networks.MLP, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(model(batch["x"]))


class Stops(gx.Callback):
    def on_step(self, run: gx.RunView) -> None:
        run.stopp("enough")


gx.Trainer(max_epoch=2)
gx.Trainer(max_epochs="2")
gx.Trainer().fit(gx.ArrayDataModule(train={}), Wrong())
gx.Trainr
"""
SAYS = (
    'Return type "Linear" of "build_model" incompatible with return type "MLP"',
    'Signature of "loss" incompatible with supertype',
    '"RunView" has no attribute "stopp"; maybe "stop"?',
    'Unexpected keyword argument "max_epoch" for "Trainer"; did you mean "max_epochs"?',
    'Argument "max_epochs" to "Trainer" has incompatible type "str"',
    'Argument 1 to "fit" of "Trainer" has incompatible type "ArrayDataModule"; expected "Task',
    'Argument 2 to "fit" of "Trainer" has incompatible type "Wrong"; expected "DataModule"',
    'Module has no attribute "Trainr"; maybe "Trainer"?',
)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """mypy's errors, by file."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "right.py").write_text(HEAD + RIGHT)
    (folder / "wrong.py").write_text(HEAD + WRONG)
    # Optax has no types that it ships.
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert errors, done.stdout + done.stderr
    return {name: [line for line in errors if line.startswith(name)] for name in ("right.py", "wrong.py")}


def test_a_right_task_passes_strict_mypy(said):
    assert said["right.py"] == []


@pytest.mark.parametrize("words", SAYS)
def test_a_wrong_one_is_told(said, words):
    assert sum(words in line for line in said["wrong.py"]) == 1, said["wrong.py"]


def test_nothing_else_is_said(said):
    assert len(said["wrong.py"]) == len(SAYS)
