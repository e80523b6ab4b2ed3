"""`galvanax export`, `--warm-start` and `--freeze`."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from galvanax.cli.main import main
from galvanax.runs.weights import read_weights

OWN = '''
import dataclasses
import jax.numpy as jnp
import numpy as np
import optax
import galvanax as gx

@dataclasses.dataclass(frozen=True)
class SpringTask(gx.Task):
    """A spring."""
    hidden: int = 8
    learning_rate: float = 1e-2

    def build_model(self, rngs):
        return gx.networks.MLP(2, (self.hidden,), 1, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adamw(self.learning_rate)

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2), {}

@dataclasses.dataclass
class SpringData(gx.ArrayDataModule):
    train: object = None
    batch_size: int = 16

    def setup(self):
        x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
        self.train = self.val = {"x": x, "y": -x[:, :1]}
        super().setup()

def experiment():
    return gx.Experiment(
        SpringTask(), SpringData(), gx.Trainer(max_epochs=2, run_dir="spring"),
        {"clip": gx.GradientClipping(1.0), "ema": gx.EMA(0.9), "checkpoint": gx.Checkpoint("val/loss", "min")},
    )

def frozen():
    spring = experiment()
    return dataclasses.replace(spring, callbacks={"freeze": gx.Freeze(("layers/0/bias",)), **spring.callbacks})
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spring.py").write_text(OWN)
    main(["fit", "spring.py:experiment"])
    return "spring.py:experiment"


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_from_a_run_to_a_file_to_a_run(own, tmp_path, capsys):
    main(["export", "spring", "--output", "weights.safetensors"])
    assert "wrote weights.safetensors" in capsys.readouterr().out
    arrays = load_file("weights.safetensors")
    expected = read_weights("spring").params
    assert arrays.keys() == {f"params/{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[f"params/{name}"], value)

    for source in ("spring", "weights.safetensors"):
        tuning = ["--warm-start", source, "--freeze", "layers/0/*", "layers/1/bias", "--trainer.run-dir", "tuned"]
        main(["fit", own, *tuning, "--trainer.seed", "5", "--overwrite"])
        assert ": 4 of 4 arrays" in capsys.readouterr().out
        tuned = read_weights("tuned", "last").params
        for name in ("layers/0/kernel", "layers/0/bias", "layers/1/bias"):
            np.testing.assert_array_equal(tuned[name], expected[name])
        assert (tuned["layers/1/kernel"] != expected["layers/1/kernel"]).any()
    callbacks = list(json.loads((tmp_path / "tuned" / "config.json").read_text())["callbacks"].values())
    assert [callback["type"] for callback in callbacks][:3] == ["Freeze", "WarmStart", "GradientClipping"]
    assert callbacks[0]["patterns"] == ["layers/0/*", "layers/1/bias"]
    assert callbacks[1]["source"] == "weights.safetensors"
    main(["fit", own, *tuning, "--trainer.seed", "5", "--resume", "--trainer.max-epochs", "3"])
    assert "warm start" not in capsys.readouterr().out
    main(["export", "tuned", "--output", "last.safetensors", "--checkpoint", "last"])
    np.testing.assert_array_equal(load_file("last.safetensors")["params/layers/0/kernel"], expected["layers/0/kernel"])


def test_what_is_wrong(own, tmp_path, capsys):
    new = ["fit", own, "--trainer.run-dir", "new"]
    assert "There is no run folder, checkpoint or file sprin. Nearest: spring" in fails(
        capsys, *new, "--warm-start", "sprin"
    )
    assert "'layer/0/*', which matches none" in fails(capsys, *new, "--freeze", "layer/0/*")
    assert "'layer/0/*', which matches none" in fails(capsys, "fit", "spring.py:frozen", "--freeze", "layer/0/*")
    assert "callbacks.warm-start.source" in fails(capsys, *new, "--partial")
    assert "There is no run folder" in fails(capsys, "export", "sprin", "--output", "weights.safetensors")
    assert "No checkpoint of step 5" in fails(
        capsys, "export", "spring", "--output", "weights.safetensors", "--checkpoint", "5"
    )
    assert "--output" in fails(capsys, "export", "spring")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "weights").exists()


def test_usage_and_help(own, capsys):
    main([])
    assert "export RUN_DIR --output FILE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["fit", own, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--warm-start" in out
    assert "--freeze" in out
