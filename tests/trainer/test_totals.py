"""Metrics that count: what is logged at a step is what there was up to it, however the run was cut into pieces."""

import csv
import dataclasses

import pytest
from support import LineTask, line_data

import galvanax as gx

EACH = 12_000_001  # a float32, but three times as much is none


@dataclasses.dataclass(frozen=True)
class Counting(LineTask):
    """Counts the examples that it has seen, whose x is positive, and something that there is much of."""

    totals = ("many", "positive")
    each: int = EACH

    def loss(self, model, batch, rng):
        loss, _ = super().loss(model, batch, rng)
        return loss, {"many": self.each, "positive": batch["x"][:, 0] > 0, "share": batch["x"][:, 0] > 0}


def fit(folder, task=None, **settings):
    """`{step: row}` of metrics.csv, as text."""
    settings = {"max_steps": 20, "log_every": 3, "callbacks": [gx.CSVLogger()], **settings}
    resume = settings.pop("resume", None)
    gx.Trainer(run_dir=folder, **settings).fit(task or Counting(), line_data(), resume=resume)
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): row for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.parametrize(("log_every", "dispatch"), [(1, None), (3, 1), (3, 4), (7, 20), (50, None)])
def test_the_number_up_to_the_step(tmp_path, log_every, dispatch):
    rows = fit(tmp_path, log_every=log_every, steps_per_dispatch=dispatch)
    assert sorted(rows) == sorted({*range(log_every, 21, log_every), 20})
    assert {step: float(row["train/many"]) for step, row in rows.items()} == {step: step * EACH for step in rows}
    # Half of the 64 examples are positive, and an epoch is 8 batches of 8.
    for step in set(rows) & {8, 16}:
        assert float(rows[step]["train/positive"]) == 32 * step / 8
    assert all(0 <= float(row["train/share"]) <= 1 for row in rows.values())


def test_it_goes_on_where_it_was(tmp_path):
    """After a resume in the middle of a window, and with other settings, the count is of what has been done."""
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "cut", max_steps=10)
    assert fit(tmp_path / "cut", resume="last", steps_per_dispatch=4) == whole
    fit(tmp_path / "other", max_steps=10)
    rows = fit(tmp_path / "other", Counting(each=5), resume="last")
    assert float(rows[20]["train/many"]) == 10 * EACH + 10 * 5


def test_the_result_and_callbacks_have_it_too(tmp_path):
    class Watch(gx.Callback):
        def on_fit_start(self, run):
            self.seen = []

        def on_train_metrics(self, run, steps, metrics):
            self.seen += zip(steps, metrics["train/many"].tolist(), strict=True)

    watch = Watch()
    result = gx.Trainer(max_steps=5, callbacks=[watch]).fit(Counting(), line_data())
    assert watch.seen == [(step, step * EACH) for step in range(1, 6)]
    assert result.metrics["train/many"] == 5 * EACH


def test_a_checkpoint_without_the_count(tmp_path, caplog):
    class Before(Counting):
        totals = ()

    fit(tmp_path, dataclasses.make_dataclass("Counting", [], bases=(Before,), frozen=True)(), max_steps=10)
    rows = fit(tmp_path, resume="last")
    assert float(rows[20]["train/many"]) == 10 * EACH
    assert "counted from step 10 on, as the checkpoint has none: train/many, train/positive" in caplog.text


def test_a_name_that_is_no_metric():
    class Task(Counting):
        totals = ("man",)

    with pytest.raises(gx.ConfigError, match=r"Task.totals names 'man'; .*Nearest: many\."):
        gx.Trainer(max_steps=1).fit(Task(), line_data())
