"""When a run ends early: the curves of other libraries' tests, with the validation at which it is to end."""

import dataclasses
import math

import jax.numpy as jnp
import optax
import pytest
from support import LineTask, line_data

import galvanax as gx

nan, inf = math.nan, math.inf


@dataclasses.dataclass(frozen=True)
class Scripted(LineTask):
    """Its metric `score`, of training and of validation, is the next of its values in each epoch of eight steps."""

    values: tuple[float, ...] = ()

    def build_optimizer(self, num_steps):
        return optax.sgd(0.0)

    def train_step(self, state, batch, rng):
        epoch = (state.step // 8).astype(int)
        params = {name: array * 0 + (state.step + 1) / 8 for name, array in state.params.items()}
        metrics = {"loss": jnp.float32(0), "score": jnp.array(self.values)[epoch]}
        return state.replace(params=params), metrics

    def evaluate(self, model, batch, rng):
        return {"loss": jnp.float32(0), "score": jnp.array(self.values)[model.kernel[0, 0].astype(int) - 1]}


def epochs(values, monitor="val/score", val=True, **settings):
    """The epochs done, and why the run ended."""
    data = line_data() if val else gx.ArrayDataModule(train=line_data().train, batch_size=8)
    stopping = gx.EarlyStopping(monitor, **settings)
    trainer = gx.Trainer(max_epochs=len(values), log_every=8, steps_per_dispatch=8, callbacks=[stopping])
    result = trainer.fit(Scripted(values=tuple(map(float, values))), data)
    return int(result.state.step) // 8, result.stop_reason


@pytest.mark.behaviour("peers 1", "reports 26")
@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [  # Lightning's test_early_stopping_patience
        ((6, 5, 5, 5, 5, 5), 3, 5),
        ((6, 5, 4, 4, 3, 3), 1, 4),
        ((6, 5, 6, 5, 5, 5), 3, 5),
        ((6, 5, 4, 3, 2, 1), 1, 6),
        ((6, 6, 5, 5, 4, 4), 0, 2),
    ],
)
def test_patience(values, patience, expected):
    assert epochs(values, mode="min", patience=patience)[0] == expected
    assert epochs([-value for value in values], mode="max", patience=patience)[0] == expected


@pytest.mark.behaviour("peers 2", "peers 3")
def test_thresholds():
    """Lightning's test_early_stopping_thresholds."""
    values = (9, 8, 7, 6, 5, 6, 4, 3, 2, 1)
    ended, reason = epochs(values, mode="min", patience=99, threshold=2.9)
    assert (ended, reason) == (9, "val/score is 2, as good as the threshold 2.9")
    ended, reason = epochs((1, 5, 9, 16, 3), mode="min", patience=99, divergence_threshold=15.9)
    assert (ended, reason) == (4, "val/score is 16, worse than the divergence threshold 15.9")
    assert epochs((9, 5, 1, 0.5), mode="max", patience=99, divergence_threshold=2.0)[0] == 3


@pytest.mark.behaviour("peers 4")
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite(value):
    ended, reason = epochs((5, 4, value, 3, 2), mode="min", patience=99)
    assert (ended, reason) == (3, f"val/score is {value}")
    ended, _ = epochs((5, 4, value, 3, 2), mode="min", patience=99, check_finite=False)
    assert ended == 5
    if not value < 0:
        assert epochs((5, value, value, 3, 2), mode="min", patience=2, check_finite=False)[0] == 3


@pytest.mark.behaviour("peers 5", "reports 1")
@pytest.mark.parametrize("val", [True, False])
def test_a_training_metric(val):
    """With validation data and without: a row of the log is what a validation is else."""
    values = (6, 5, 5, 5, 5, 5, 5, 5)
    ended, reason = epochs(values, monitor="train/score", val=val, mode="min", patience=3)
    assert reason == "train/score has not improved on 5 in 3 rows of the log"
    assert 5 <= ended <= 6  # told one dispatch late
    assert epochs((3, 2, 1), monitor="train/score", val=val, mode="min", patience=1) == (3, None)


@pytest.mark.behaviour("peers 45", "reports 1")
@pytest.mark.parametrize("val", [True, False])
def test_checkpoints_by_a_training_metric(tmp_path, val):
    data = line_data() if val else gx.ArrayDataModule(train=line_data().train, batch_size=8)
    saving = gx.Checkpoint("train/score", "min", keep_best=2)
    trainer = gx.Trainer(max_epochs=5, log_every=8, run_dir=tmp_path, callbacks=[saving])
    result = trainer.fit(Scripted(values=(5.0, 2.0, nan, 1.0, 4.0)), data)
    assert result.best_checkpoint.name == "32"
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [16, 32, 40]


@pytest.mark.behaviour("peers 6")
def test_settings_that_make_no_sense():
    with pytest.raises(gx.ConfigError, match=r"EarlyStopping.*mode='lowest'.*min.*max"):
        gx.EarlyStopping("val/loss", "lowest")
    with pytest.raises(gx.ConfigError, match="patience=-1"):
        gx.EarlyStopping("val/loss", "min", patience=-1)


@pytest.mark.behaviour("peers 8")
@pytest.mark.parametrize("first", [0, 1])
def test_the_first_that_is_satisfied_ends_the_run(first):
    callbacks = [
        gx.EarlyStopping("val/score", "min", patience=3),
        gx.EarlyStopping("val/score", "max", patience=99, threshold=6.5),
    ]
    trainer = gx.Trainer(max_epochs=6, callbacks=callbacks[::-1] if first else callbacks)
    values = (6.0, 6.0, 7.0, 6.0, 6.0, 6.0)
    result = trainer.fit(Scripted(values=values), line_data())
    assert int(result.state.step) == 3 * 8
    assert result.stop_reason == "val/score is 7, as good as the threshold 6.5"


@pytest.mark.behaviour("peers 9", "peers 10", "peers 166")
def test_each_of_two_keeps_its_own_state(tmp_path):
    """In a run that goes on with them in another order: an infinite best, and how long each has waited."""
    values = (4.0, -inf, 4.0, 3.0, 2.0, 1.0)
    looks = {"mode": "min", "patience": 3, "check_finite": False}

    def fit(epochs, *names, resume=None):
        callbacks = [gx.EarlyStopping(f"val/{name}", **looks) for name in names]
        trainer = gx.Trainer(max_epochs=epochs, run_dir=tmp_path, callbacks=callbacks)
        result = trainer.fit(Scripted(values=values), line_data(), resume=resume)
        return result, {callback.monitor: callback.host_state() for callback in callbacks}

    _, states = fit(3, "score", "loss")
    assert states["val/score"] == {"best": -inf, "waited": 1, "reason": None}
    assert states["val/loss"] == {"best": 0.0, "waited": 2, "reason": None}
    result, states = fit(6, "loss", "score", resume="last")
    assert int(result.state.step) == 4 * 8
    assert result.stop_reason == "val/loss has not improved on 0 in 3 validations"
    assert states["val/score"] == {"best": -inf, "waited": 2, "reason": None}


@pytest.mark.behaviour("peers 12")
def test_not_before_so_many_epochs():
    """Of one's own: what comes before is not looked at."""

    class Late(gx.EarlyStopping):
        def on_validation_end(self, run, metrics):
            if run.epoch >= 4:
                super().on_validation_end(run, metrics)

    trainer = gx.Trainer(max_epochs=9, callbacks=[Late("val/score", "min", patience=2)])
    result = trainer.fit(Scripted(values=(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)), line_data())
    assert int(result.state.step) == 8 * 8
