"""Names of run folders: whatever a sweep makes, its weights can be read, or it is refused before training."""

from pathlib import Path

import numpy as np
import pytest
from support import LineTask, assert_same_state, line_data

import galvanax as gx
from galvanax.cli.main import main

NAMES = (
    "hidden=[64,64]",
    "a[b",
    "x[!a]*?",
    "lr=1e-3,bs=16",
    "a b",
    "100%",
    "a#b?c",
    "a%20b",
    'quo"te',
    "new\nline",
    "ümläut",
)


def fit(folder, steps=8, **arguments):
    return gx.Trainer(max_steps=steps, run_dir=folder).fit(LineTask(), line_data(), **arguments)


@pytest.mark.behaviour("reports 4")
@pytest.mark.parametrize("name", NAMES)
def test_odd_names(tmp_path, name):
    result = fit(tmp_path / name)
    _, model = LineTask.load(tmp_path / name)
    np.testing.assert_array_equal(model.kernel[...], result.state.params["kernel"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.behaviour("reports 4", "reports 29")
def test_everything_that_reads_a_run_in_brackets(tmp_path):
    folder = tmp_path / "sweep[1]" / "hidden=[64,64]"
    whole = fit(tmp_path / "plain", 12)
    fit(folder)
    result = fit(folder, 12, resume="auto")
    assert_same_state(result.state, whole.state)
    trainer = gx.Trainer(max_steps=1, run_dir=folder)
    assert trainer.validate(LineTask(), line_data(), "last")["val/loss"] == pytest.approx(result.metrics["val/loss"])
    gx.export_safetensors(folder, tmp_path / "[w].safetensors")
    for source in (folder, tmp_path / "[w].safetensors"):
        gx.Trainer(max_steps=1, callbacks=[gx.WarmStart(source)]).fit(LineTask(), line_data())
    main(["export", str(folder), "--output", str(tmp_path / "w[2].safetensors")])


@pytest.mark.behaviour("reports 4")
@pytest.mark.parametrize("place", ["a\\b", "a\\b/run"])
def test_a_backslash_is_refused_before_training(tmp_path, place):
    with pytest.raises(gx.ConfigError, match=r"has a backslash.*expected such as '.*a-b"):
        fit(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.behaviour("reports 4d")
def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = fit("~/run")
    assert result.best_checkpoint == tmp_path / "run" / "checkpoints" / "8"
    assert LineTask.load("~/run", "last")
    assert LineTask.load(Path("~/run"), "~/run/checkpoints/8")
    assert int(fit("~/run", 12, resume="last").state.step) == 12
    gx.export_safetensors("~/run", tmp_path / "w")
    gx.Trainer(max_steps=1, callbacks=[gx.WarmStart("~/run")]).fit(LineTask(), line_data())
    assert not (tmp_path / "~").exists()


@pytest.mark.behaviour("peers 52", "peers 152")
def test_a_branch_keeps_what_comes_later(tmp_path):
    saving = gx.Checkpoint(every=gx.Steps(10), keep_last=None, keep_every=gx.Steps(20))
    data = line_data()

    def fit(steps, **arguments):
        return gx.Trainer(max_steps=steps, run_dir=tmp_path, callbacks=[saving]).fit(LineTask(), data, **arguments)

    def names(*folder):
        return sorted(path.name for path in tmp_path.joinpath("checkpoints", *folder).iterdir())

    fit(60)
    before = LineTask.load(tmp_path, "60")[1].kernel[...]
    fit(25, resume=20)
    assert names() == ["10", "20", "25", "superseded"]
    assert names("superseded") == ["30", "40", "50", "60"]
    aside = tmp_path / "checkpoints" / "superseded" / "60"
    np.testing.assert_array_equal(LineTask.load(tmp_path, aside)[1].kernel[...], before)
    fit(45, resume="last")
    fit(30, resume="10")  # the second branch's steps come beside the first's
    assert names("superseded") == ["20", "25", "30", "30-2", "40", "40-2", "45", "50", "60"]
    assert int(fit(65, resume=aside).state.step) == 65
    assert "60" in names("superseded")


def test_a_folder_with_checkpoints_alone_is_not_free(tmp_path):
    fit(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(gx.RunDirError, match=r"holds another run \(checkpoints/\)"):
        fit(tmp_path)
    assert LineTask.load(tmp_path)
    assert int(fit(tmp_path, 12, resume="auto").state.step) == 12
    gx.Trainer(max_steps=4, run_dir=tmp_path, overwrite=True).fit(LineTask(), line_data())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


@pytest.mark.behaviour("peers 49")
def test_weights_are_kept_without_being_asked(tmp_path):
    result = fit(tmp_path / "run")
    assert result.best_checkpoint == tmp_path / "run" / "checkpoints" / "8"
    np.testing.assert_array_equal(LineTask.load(tmp_path / "run")[1].kernel[...], result.state.params["kernel"])
    nothing = gx.Trainer(max_steps=8, run_dir=tmp_path / "none", checkpoint=False).fit(LineTask(), line_data())
    assert nothing.best_checkpoint is None
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["config.json"]
    with pytest.raises(gx.ConfigError, match=r"checkpoint=False, but there is a Checkpoint"):
        gx.Trainer(max_steps=8, run_dir=tmp_path, checkpoint=False, callbacks=[gx.Checkpoint()]).fit(
            LineTask(), line_data()
        )


@pytest.mark.behaviour("peers 48", "peers 49")
def test_without_validation_a_checkpoint_every_ten_minutes(tmp_path, monkeypatch):
    """Else a kill would lose all."""
    import galvanax.runs.checkpoint as module

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    class Passes(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            clock.now += 120 * len(steps)

        def on_save(self, run):
            saved.append(run.step)

    clock, saved = Clock(), []
    monkeypatch.setattr(module, "time", clock)
    data = gx.ArrayDataModule(train=line_data().train, batch_size=8)
    trainer = gx.Trainer(max_steps=20, run_dir=tmp_path, steps_per_dispatch=1, callbacks=[Passes()])
    trainer.fit(LineTask(), data)
    # The clock goes two minutes a step, and is looked at a dispatch later.
    assert saved == [7, 14, 20]


@pytest.mark.behaviour("peers 39", "peers 47")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gx.Checkpoint(every=16), r"Checkpoint.every=16: expected gx.Steps\(16\), gx.Epochs\(1\), gx.Minutes"),
        (lambda: gx.Checkpoint(every=0.5), r"Checkpoint.every=0.5: expected gx.Steps\(500\)"),
        (lambda: gx.Checkpoint(keep_every=10), r"Checkpoint.keep_every=10: expected gx.Steps\(10\), gx.Epochs\(1\) or"),
        (lambda: gx.Checkpoint(keep_every=gx.Minutes(1)), r"Checkpoint.keep_every=Minutes\(minutes=1\): expected"),
        (lambda: gx.VideoRecorder(every=7), r"VideoRecorder.every=7: expected gx.Steps\(7\)"),
    ],
)
def test_intervals_that_are_none(make, words):
    with pytest.raises(gx.ConfigError, match=words):
        make()


@pytest.mark.behaviour("peers 20")
@pytest.mark.parametrize("value", [2, None, 0.5, gx.Minutes(1)])
def test_validation_intervals_that_are_none(tmp_path, value):
    with pytest.raises(gx.ConfigError, match=r"Trainer.val_every=.*expected gx.Steps.*gx.Epochs"):
        gx.Trainer(max_steps=4, run_dir=tmp_path / "run", val_every=value).fit(LineTask(), line_data())
    assert not (tmp_path / "run").exists()
