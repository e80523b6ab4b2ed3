"""Clipping, averaging, stopping, logging, as a user sees them."""

import csv
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from support import LineTask, NetTask, Recorder, line_data, net_data
from tensorboardX.proto.event_pb2 import Event

import galvanax as gx


class PlainTask(LineTask):
    """LineTask on the same batch at each step: its gradient at w is 2 (w - 3) mean(x^2)."""


def constant_data(x=1.0):
    rows = {"x": np.full((8, 1), x, np.float32), "y": np.full((8, 1), 3 * x, np.float32)}
    return gx.ArrayDataModule(rows, rows, batch_size=8)


def weights(callbacks, steps=6, learning_rate=0.1, data=None):
    recorder = Recorder(tuple(range(1, steps + 1)))
    trainer = gx.Trainer(max_steps=steps, callbacks=[*callbacks, recorder])
    result = trainer.fit(LineTask(learning_rate), data or constant_data())
    return [recorder.states[step]["kernel"].item() for step in range(1, steps + 1)], result


@pytest.mark.behaviour("peers 60")
@pytest.mark.parametrize("by", ["norm", "value"])
def test_gradient_clipping(by):
    # With one parameter, both limit the step to lr × threshold.
    found, _ = weights([gx.GradientClipping(0.5, by=by)])
    np.testing.assert_allclose(np.diff(found), 0.05, rtol=1e-4)
    free, _ = weights([])
    assert np.diff(free)[0] > 0.05


@pytest.mark.behaviour("peers 60")
def test_clipping_by_norm_scales_all_entries_together():
    rows = {"x": np.array([[1.0, 10.0, 0.0]] * 8, np.float32), "y": np.array([[100.0, 100.0]] * 8, np.float32)}
    import optax
    from flax import nnx

    class WideTask(LineTask):
        def build_model(self, rngs):
            return nnx.Linear(3, 2, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

        def build_optimizer(self, num_steps):
            return optax.sgd(1.0)

    norm = gx.Trainer(max_steps=1, callbacks=[gx.GradientClipping(1.0)]).fit(
        WideTask(), gx.ArrayDataModule(rows, batch_size=8)
    )
    value = gx.Trainer(max_steps=1, callbacks=[gx.GradientClipping(1.0, by="value")]).fit(
        WideTask(), gx.ArrayDataModule(rows, batch_size=8)
    )
    step = np.asarray(norm.state.params["kernel"])
    assert np.sqrt((step**2).sum()) == pytest.approx(1, rel=1e-5)
    assert step[1, 0] / step[0, 0] == pytest.approx(10, rel=1e-5)
    np.testing.assert_array_equal(np.asarray(value.state.params["kernel"])[:2], 1)


@pytest.mark.behaviour("peers 68")
def test_ema_is_the_recurrence_it_says():
    raw, result = weights([gx.EMA(0.5)], steps=9)
    # Step 1 mixes the untrained weight in with (1 + 1) / (10 + 1); recover it from the average itself.
    first = (result.state.slots["EMA"]["kernel"].item(), None)
    average = None
    untrained = raw[0] - 0.1 * 2 * (3 - raw[0]) / (1 - 0.2)  # one step back of w += 0.2 (3 - w)
    average = untrained
    for step, weight in enumerate(raw, start=1):
        keep = min(0.5, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * weight
    assert first[0] == pytest.approx(average, rel=1e-5)
    assert result.model.kernel[...].item() == first[0]
    assert result.state.params["kernel"].item() == raw[-1]


def test_early_evaluation_of_an_average_is_not_of_untrained_weights():
    losses = {}
    for name, callbacks in {"raw": [], "ema": [gx.EMA(0.9999)]}.items():
        recorder = Recorder()
        trainer = gx.Trainer(max_steps=40, val_every=gx.Steps(40), callbacks=[*callbacks, recorder])
        trainer.fit(LineTask(), line_data())
        losses[name] = recorder.validations[40]["val/loss"]
    untrained = gx.Trainer(max_steps=1).fit(LineTask(0.0), line_data()).metrics["val/loss"]
    assert losses["ema"] < untrained / 100
    assert losses["ema"] != losses["raw"]


@pytest.mark.behaviour("peers 7")
def test_early_stopping_waits_for_patience():
    recorder = Recorder()
    stopping = gx.EarlyStopping("val/loss", mode="min", patience=3)
    trainer = gx.Trainer(max_epochs=50, callbacks=[stopping, recorder])
    result = trainer.fit(LineTask(0.0), line_data())  # a rate of zero never improves
    assert sorted(recorder.validations) == [8, 16, 24, 32]  # the first is the best so far; then patience
    assert "val/loss has not improved" in result.stop_reason
    assert int(result.state.step) == 32


def test_early_stopping_counts_only_improvements_beyond_min_delta():
    def epochs(**settings):
        recorder = Recorder()
        trainer = gx.Trainer(max_epochs=30, callbacks=[gx.EarlyStopping("val/loss", **settings), recorder])
        trainer.fit(LineTask(0.01), line_data())
        return len(recorder.validations)

    assert epochs(mode="min", patience=1) == 30
    assert epochs(mode="min", patience=1, min_delta=100.0) == 2
    assert epochs(mode="max", patience=1) == 2
    assert 1 < epochs(mode="min", patience=1, threshold=2.0) < 30


@pytest.mark.behaviour("peers 26", "peers 93")
def test_csv_has_every_metric_on_its_step(tmp_path):
    recorder = Recorder()
    trainer = gx.Trainer(
        max_steps=25, log_every=10, val_every=gx.Steps(20), run_dir=tmp_path, callbacks=[gx.CSVLogger(), recorder]
    )
    trainer.fit(NetTask(), net_data())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}
    val = {int(row["step"]): float(row["val/loss"]) for row in rows if row["val/loss"]}
    losses = [recorder.train[step] for step in range(1, 26)]
    assert train == {10: np.mean(losses[:10]), 20: np.mean(losses[10:20]), 25: pytest.approx(np.mean(losses[20:]))}
    assert val == {step: metrics["val/loss"] for step, metrics in recorder.validations.items()}
    assert float(rows[0]["epoch"]) == 1.0


def read_events(folder):
    """The TFRecord frames of TensorBoard's files: length, checksum, data, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def test_tensorboard_has_the_same_numbers(tmp_path):
    trainer = gx.Trainer(max_steps=20, log_every=10, run_dir=tmp_path, callbacks=[gx.TensorBoardLogger()])
    result = trainer.fit(NetTask(), net_data())
    events = {(step, tag): value for step, tag, value in read_events(tmp_path / "tensorboard")}
    assert events[20, "train/loss"] == pytest.approx(result.metrics["train/loss"], rel=1e-6)
    assert events[20, "val/mae"] == pytest.approx(result.metrics["val/mae"], rel=1e-6)
    assert events[10, "speed/steps_per_second"] > 0


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    callbacks = [gx.ModelSummary(), gx.ProgressBar(seconds=0.0)]
    gx.Trainer(max_steps=20, callbacks=callbacks).fit(NetTask(), net_data())
    out = capsys.readouterr().out
    assert "first/kernel" in out
    assert f"Total: {3 * 16 + 16 + 2 * 16 + 16 * 2 + 2}" in out
    assert "step 20/20" in out
    assert "val/loss" in out
    assert "\x1b" not in out


def test_gradients_pass_callbacks_in_list_order():
    import optax

    class Scale(gx.Callback):
        def wrap_optimizer(self, optimizer):
            return optax.chain(optax.scale(1e6), optimizer)

    clipped_last, _ = weights([Scale(), gx.GradientClipping(0.5)])
    clipped_first, _ = weights([gx.GradientClipping(0.5), Scale()], steps=1)
    np.testing.assert_allclose(np.diff(clipped_last), 0.05, rtol=1e-3)
    assert abs(clipped_first[0]) > 1e3


def test_a_callback_of_ones_own():
    class Peak(gx.Callback):
        """Keeps the largest weight ever seen, in the compiled step."""

        def init_slot(self, params):
            return jnp.float32(-jnp.inf)

        def update_slot(self, slot, state):
            return jnp.maximum(slot, state.params["kernel"].max())

    raw, result = weights([Peak()], steps=5, learning_rate=0.8)
    assert result.state.slots["Peak"].item() == max(raw)


@pytest.mark.behaviour("peers 71", "peers 70")
def test_an_average_of_ones_own_over_chosen_steps():
    """Stochastic weight averaging in a slot: the mean of the weights of steps 4, 6 and 8, which evaluation uses."""

    class MeanOf(gx.Callback):
        def init_slot(self, params):
            return {"count": jnp.int32(0), "mean": params}

        def update_slot(self, slot, state):
            chosen = (state.step >= 4) & (state.step % 2 == 0)
            count = slot["count"] + chosen
            share = jnp.where(chosen, 1 / jnp.maximum(count, 1), 0)
            mean = {name: slot["mean"][name] + share * (new - slot["mean"][name]) for name, new in state.params.items()}
            return {"count": count, "mean": mean}

        def eval_params(self, slot):
            return slot["mean"]

    raw, result = weights([MeanOf()], steps=8)
    assert result.model.kernel[...].item() == pytest.approx(np.mean([raw[3], raw[5], raw[7]]), rel=1e-6)
    assert result.state.params["kernel"].item() == raw[7]
