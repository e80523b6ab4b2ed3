"""What a run leaves in its folder, and how it is found again."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support import LineTask, NetTask, Recorder, assert_same_state, line_data, net_data

import galvanax as gx


def settings(folder, **changes):
    callbacks = changes.pop("callbacks", [])
    saving = [gx.EMA(0.9), gx.CSVLogger(), gx.Checkpoint(monitor="val/loss", mode="min", keep_best=2, keep_last=2)]
    return gx.Trainer(
        **{"max_epochs": 6, "run_dir": folder, "log_every": 4, **changes, "callbacks": [*saving, *callbacks]}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "net"
    recorder = Recorder()
    result = settings(folder, callbacks=[recorder]).fit(NetTask(), net_data())
    return folder, result, recorder


def steps_of(folder):
    return sorted(int(entry.name) for entry in (folder / "checkpoints").iterdir() if entry.name.isdigit())


@pytest.mark.behaviour("peers 36")
def test_keeps_the_best_and_the_last(finished):
    folder, result, recorder = finished
    ranked = sorted(recorder.validations, key=lambda step: recorder.validations[step]["val/loss"])
    assert steps_of(folder) == sorted({*ranked[:2], 50, 60})
    assert result.best_checkpoint == folder / "checkpoints" / str(ranked[0])


@pytest.mark.behaviour("peers 58", "peers 68", "reports 20")
def test_load_gives_the_averaged_weights_of_the_best(finished):
    folder, result, recorder = finished
    task, model = NetTask.load(folder)
    assert task == NetTask()
    best = int(result.best_checkpoint.name)
    error = np.asarray(model(net_data().val["x"])) - net_data().val["y"]
    assert np.mean(error**2) == pytest.approx(recorder.validations[best]["val/loss"], rel=1e-5)
    _, last = NetTask.load(folder, "last")
    np.testing.assert_array_equal(last.second.kernel[...], result.model.second.kernel[...])
    assert (np.asarray(last.second.kernel[...]) != result.state.params["second/kernel"]).any()
    _, named = NetTask.load(folder, str(best))
    _, path = NetTask.load(folder, result.best_checkpoint)
    np.testing.assert_array_equal(named.second.kernel[...], path.second.kernel[...])


@pytest.mark.behaviour("peers 58", "peers 94")
def test_validate_by_checkpoint(finished):
    folder, result, recorder = finished
    trainer = settings(folder)
    for name, step in (("best", int(result.best_checkpoint.name)), ("last", 60)):
        assert trainer.validate(NetTask(), net_data(), name) == pytest.approx(recorder.validations[step], rel=1e-6)


@pytest.mark.behaviour("peers 136")
def test_the_folder_says_what_made_it(finished):
    folder, _, recorder = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["task"] == {"type": "NetTask", **dataclasses.asdict(NetTask())}
    assert config["data"]["train"] == {"x": "float32[320, 3]", "y": "float32[320, 2]"}
    assert config["trainer"]["val_every"] == {"epochs": 1}
    assert list(config["callbacks"]) == ["EMA", "CSVLogger", "Recorder", "Checkpoint"]
    assert config["callbacks"]["EMA"] == {"class": "galvanax.callbacks.ema.EMA", "type": "EMA", "decay": 0.9}
    assert config["versions"]["jax"] == jax.__version__
    meta = json.loads((folder / "checkpoints" / "60" / "meta.json").read_text())
    assert meta["position"] == {"next_index": 60}
    assert meta["monitor"] == {"metric": "val/loss", "mode": "min", "value": recorder.validations[60]["val/loss"]}
    assert "params/first/kernel" in meta["arrays"]
    assert "weights/first/kernel" in meta["arrays"]


@pytest.mark.behaviour("peers 11", "peers 31", "peers 55")
def test_a_second_run_does_not_touch_the_first(finished):
    folder = finished[0]
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    with pytest.raises(gx.RunDirError, match=r"holds another run.*--resume.*--overwrite"):
        settings(folder).fit(NetTask(), net_data())
    with pytest.raises(gx.ConfigError, match="is of step 60, and the run ends at step 60: give it more steps"):
        settings(folder).fit(NetTask(), net_data(), resume="last")
    with pytest.raises(gx.CheckpointError, match="is a checkpoint of NetTask, not of LineTask"):
        settings(folder).fit(LineTask(), line_data(), resume="last")
    with pytest.raises(gx.CheckpointError, match=r"no checkpoint: it has no meta.json.*best.*last"):
        settings(folder).fit(NetTask(), net_data(), resume="bset")
    assert before == sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))


@pytest.mark.behaviour("peers 58")
def test_checkpoints_of_something_else(finished, tmp_path):
    folder = finished[0]
    with pytest.raises(gx.CheckpointError, match="is a checkpoint of NetTask, not of LineTask"):
        LineTask.load(folder)
    with pytest.raises(gx.CheckpointError, match=r"There is no run folder .*Nearest: .*net"):
        NetTask.load(folder.parent / "nett")
    with pytest.raises(gx.CheckpointError, match="No checkpoint in"):
        NetTask.load(tmp_path)
    with pytest.raises(gx.CheckpointError, match=r"No checkpoint of step 7 .*60"):
        NetTask.load(folder, "7")

    class WideTask(NetTask):
        pass

    WideTask.__name__ = "NetTask"
    with pytest.raises(gx.CheckpointError, match=r"first/kernel: expected float32\[3, 17\], saved float32\[3, 16\]"):
        settings(folder).validate(NetTask(width=17), net_data(), "last")


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    settings(folder, max_epochs=1).fit(NetTask(), net_data())
    (folder / "notes.txt").write_text("mine")
    settings(folder, max_epochs=2, overwrite=True).fit(NetTask(), net_data())
    assert steps_of(folder) == [10, 20]
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failed_start_leaves_the_folder_free(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(gx.ConfigError):
        settings(folder, callbacks=[gx.EarlyStopping("loss", "min")]).fit(NetTask(), net_data())
    assert not folder.exists()


class Crash(gx.Callback):
    """Raises at a step."""

    def __init__(self, step):
        self.step = step

    def next_step(self, step):
        return self.step if step < self.step else None

    def on_step(self, run):
        raise KeyboardInterrupt


@pytest.mark.behaviour("peers 50", "peers 53", "peers 54", "peers 69")
@pytest.mark.parametrize("crash", [3, 20, 37])
def test_a_resumed_run_is_the_same_run(finished, tmp_path, crash):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        settings(folder, callbacks=[Crash(crash)]).fit(NetTask(), net_data())
    result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    assert_same_state(result.state, finished[1].state)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()
    assert steps_of(folder) == steps_of(finished[0])


def test_a_checkpoint_of_bits_that_changed(finished, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    victim = max((folder / "checkpoints" / "60").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(gx.CheckpointError, match=rf"60 is damaged: .*{victim.name} altered"):
        NetTask.load(folder, "last")


@pytest.mark.behaviour("peers 59")
def test_a_finished_run_that_is_started_again_has_nothing_to_do(finished, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    result = settings(folder).fit(NetTask(), net_data(), resume="auto")
    assert_same_state(result.state, finished[1].state)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()
    metas = [
        sorted((path.parent.name, path.read_bytes()) for path in each.rglob("meta.json"))
        for each in (folder, finished[0])
    ]
    assert metas[0] == metas[1]  # they hold the time, too


@pytest.mark.behaviour("peers 9")
def test_a_run_that_was_stopped_stays_stopped(tmp_path):
    def fit(patience, resume=None):
        stopping = gx.EarlyStopping("val/loss", "min", patience=patience)
        return settings(tmp_path, callbacks=[stopping]).fit(LineTask(0.0), line_data(), resume=resume)

    first = fit(2)
    again = fit(2, "auto")
    assert again.stop_reason == first.stop_reason
    assert int(again.state.step) == int(first.state.step) == 24
    assert int(fit(4, "last").state.step) == 40


@pytest.mark.behaviour("peers 157")
def test_more_steps_than_before(finished, tmp_path):
    """The batches go on where they were: as if the longer run had been asked for at once."""

    class StepsTask(LineTask):
        pass

    recorder, whole = Recorder(), Recorder()
    settings(tmp_path / "a", max_epochs=2).fit(StepsTask(), line_data())
    settings(tmp_path / "a", max_epochs=4, callbacks=[recorder]).fit(StepsTask(), line_data(), resume="last")
    settings(tmp_path / "b", max_epochs=4, callbacks=[whole]).fit(StepsTask(), line_data())
    assert recorder.train == {step: loss for step, loss in whole.train.items() if step > 16}
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


@pytest.mark.behaviour("peers 39")
def test_rolling_and_permanent_checkpoints(tmp_path):
    saving = gx.Checkpoint(every=gx.Steps(5), keep_last=2, keep_every=gx.Steps(20))
    gx.Trainer(max_steps=47, run_dir=tmp_path / "a", callbacks=[saving]).fit(NetTask(), net_data())
    assert steps_of(tmp_path / "a") == [20, 40, 45, 47]
    saving = gx.Checkpoint(every=gx.Steps(10), keep_last=None)
    gx.Trainer(max_steps=40, run_dir=tmp_path / "b", callbacks=[saving]).fit(NetTask(), net_data())
    assert steps_of(tmp_path / "b") == [10, 20, 30, 40]


@pytest.mark.behaviour("peers 48")
def test_checkpoints_by_time(tmp_path):
    import time

    class Slow(gx.Callback):
        def on_train_metrics(self, run, steps, metrics):
            time.sleep(0.05)

    seen = []

    class Watch(gx.Callback):
        def on_save(self, run):
            seen.append(run.step)

    saving = gx.Checkpoint(every=gx.Minutes(0.2 / 60), keep_last=None)
    trainer = gx.Trainer(max_steps=40, steps_per_dispatch=2, run_dir=tmp_path, callbacks=[Slow(), Watch(), saving])
    trainer.fit(NetTask(), net_data())
    assert len(seen) >= 3
    assert seen[-1] == 40
    assert steps_of(tmp_path) == seen


@pytest.mark.parametrize(
    "callbacks",
    [
        (gx.Checkpoint(), gx.Checkpoint(monitor="val/loss", mode="min")),
        (gx.CSVLogger(), gx.EMA(0.9), gx.CSVLogger()),
        (gx.TensorBoardLogger(), gx.TensorBoardLogger()),
    ],
)
def test_two_that_would_write_the_same_files(tmp_path, callbacks):
    kind = type(callbacks[0]).__name__
    with pytest.raises(gx.ConfigError, match=rf"two of {kind}, which would write the same files: use one"):
        gx.Trainer(max_steps=1, run_dir=tmp_path / "run", callbacks=callbacks).fit(NetTask(), net_data())
    assert not (tmp_path / "run").exists()


@pytest.mark.behaviour("peers 86")
def test_an_exception_is_saved_where_it_happened(finished, tmp_path):
    class Ends(type(net_data())):
        """Breaks once, at the 17th batch: the seventh of the second epoch."""

        def train_dataset(self, seed):
            def read(index, batch):
                reads.append(index % 10)
                if index % 10 == 6 and reads.count(6) == 2:
                    raise OSError("the disk is gone")
                return batch

            reads: list = []
            return super().train_dataset(seed).map_with_index(read)

    data = net_data()
    broken = Ends(data.train, data.val, data.test, data.batch_size)
    folder = tmp_path / "run"
    with pytest.raises(OSError, match="the disk is gone"):
        settings(folder, steps_per_dispatch=1).fit(NetTask(), broken)
    assert steps_of(folder)[-1] == 16
    result = settings(folder).fit(NetTask(), net_data(), resume="last")
    assert_same_state(result.state, finished[1].state)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()
