"""What callbacks are told, in which order, and what an error in one of them costs: never a checkpoint."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support import LineTask, NetTask, assert_same_state, line_data, net_data

import galvanax as gx
from galvanax.runs.checkpoints import CheckpointFolder


class Bad(Exception):
    """Raised on purpose."""


def fit(folder, *callbacks, task=None, data=None, resume=None, saving=None, **settings):
    saving = saving or gx.Checkpoint(every=gx.Steps(1000))  # of itself, it saves the end alone
    trainer = gx.Trainer(
        **{"max_steps": 24, "run_dir": folder, "log_every": 5, **settings},
        callbacks=[*callbacks, gx.CSVLogger(), saving],
    )
    return trainer.fit(task or NetTask(), data or net_data(), resume=resume)


def steps_of(folder):
    return sorted(int(path.name) for path in (Path(folder) / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, fit(folder)


def raises_in(hook, at):
    """A callback that raises in one of its hooks, once a step is reached, and only once."""

    class Raises(gx.Callback):
        done = False

        def next_step(self, step):
            return step + 1

    def boom(self, run, *arguments):
        step = arguments[0] if hook == "on_train_log" else arguments[0][-1] if hook == "on_train_metrics" else run.step
        if step >= at and not self.done:
            self.done = True
            raise Bad(hook)
        return False

    setattr(Raises, hook, boom)
    return Raises()


@pytest.mark.behaviour("peers 82", "peers 86")
@pytest.mark.parametrize("hook", ["on_train_metrics", "on_train_log", "on_validation_end", "on_step", "due", "on_save"])
def test_an_error_in_any_hook_saves_the_last_whole_step(undisturbed, tmp_path, hook):
    """And the run goes on from there to the same bits, with the same rows in metrics.csv."""
    saving = gx.Checkpoint(every=gx.Steps(12))
    with pytest.raises(Bad, match=hook):
        fit(tmp_path, raises_in(hook, 11), saving=saving, steps_per_dispatch=3)
    assert steps_of(tmp_path)[-1] >= 11
    result = fit(tmp_path, resume="last")
    assert_same_state(result.state, undisturbed[1].state)
    assert (tmp_path / "metrics.csv").read_bytes() == (undisturbed[0] / "metrics.csv").read_bytes()


@dataclasses.dataclass
class FailingValidation(gx.DataModule):
    """Validation data that breaks at its third reading: the first two are looks at its form and the one at step 10."""

    breaks: bool = True

    def __post_init__(self):
        self.reads = 0
        self.inner = net_data()

    def train_dataset(self, seed):
        return self.inner.train_dataset(seed)

    def val_dataset(self):
        def read(batch):
            self.reads += 1
            if self.breaks and self.reads > 4:
                raise Bad("validation")
            return batch

        return self.inner.val_dataset().map(read)


@pytest.mark.behaviour("peers 83")
@pytest.mark.parametrize("end", [20, 24])
def test_an_error_in_validation(undisturbed, tmp_path, end):
    """The step is saved; the resumed run makes up for the validation, also where it was the last thing to do."""
    whole = undisturbed[1] if end == 24 else None
    reference = tmp_path / "whole"
    if whole is None:
        whole = fit(reference, max_steps=end)
    else:
        reference = undisturbed[0]
    folder = tmp_path / "run"
    with pytest.raises(Bad, match="validation"):
        fit(folder, data=FailingValidation(), max_steps=end)
    assert steps_of(folder) == [20]
    result = fit(folder, data=FailingValidation(breaks=False), resume="last", max_steps=end)
    assert_same_state(result.state, whole.state)
    assert (folder / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()


@pytest.mark.behaviour("peers 28")
def test_order_at_the_end(tmp_path):
    told = []

    class Tells(gx.Callback):
        def next_step(self, step):
            return 24 if step < 24 else None

        def on_train_log(self, run, step, metrics):
            told.append(("on_train_log", step, steps_of(tmp_path)))

        def on_fit_end(self, run, result):
            told.append(("on_fit_end", result.best_checkpoint.name, steps_of(tmp_path)))

    for hook in ("on_validation_end", "on_step", "on_train_end", "on_save"):
        setattr(Tells, hook, lambda self, run, *_, hook=hook: told.append((hook, run.step, steps_of(tmp_path))))
    result = fit(tmp_path, Tells())
    assert [name for name, *_ in told[-6:]] == [
        "on_train_log", "on_validation_end", "on_step", "on_train_end", "on_save", "on_fit_end"
    ]  # fmt: skip
    assert all(steps == [] for *_, steps in told[:-1])
    assert told[-1] == ("on_fit_end", "24", [24])
    assert result.best_checkpoint.name == "24"


@pytest.mark.behaviour("peers 88")
def test_a_logger_that_flushes_in_on_save_and_closes_in_on_fit_end(tmp_path):
    class Log(gx.Callback):
        def on_fit_start(self, run):
            self.file = (run.run_dir / "log.txt").open("w")

        def on_train_log(self, run, step, metrics):
            self.file.write(f"{step}\n")

        def on_save(self, run):
            self.file.flush()

        def on_fit_end(self, run, result):
            self.file.close()

    fit(tmp_path, Log())
    assert steps_of(tmp_path) == [24]
    assert (tmp_path / "log.txt").read_text().split() == ["5", "10", "15", "20", "24"]


@pytest.mark.parametrize("hook", ["on_train_end", "on_save", "on_fit_end", "host_state"])
def test_an_error_at_the_end_costs_no_checkpoint(undisturbed, tmp_path, hook):
    ended = []

    class Fails(gx.Callback):
        pass

    class Last(gx.Callback):
        def on_fit_end(self, run, result):
            ended.append("on_fit_end")

        def on_exception(self, run, error):
            ended.append(type(error).__name__)

    def boom(self, *arguments):
        raise Bad(hook)

    setattr(Fails, hook, boom)
    with pytest.raises(Bad, match=hook):
        fit(tmp_path, Fails(), Last())
    assert steps_of(tmp_path) == [24]
    assert NetTask.load(tmp_path)
    assert ended == (["on_fit_end", "Bad"] if hook == "on_fit_end" else ["Bad"])


@pytest.mark.behaviour("peers 134")
def test_host_state_is_of_its_step(tmp_path):
    class Growing(gx.Callback):
        def on_fit_start(self, run):
            self.list = []

        def on_train_metrics(self, run, steps, metrics):
            self.list.extend(steps)

        def host_state(self):
            return {"list": self.list, "scalar": np.float32("nan")}

    saving = gx.Checkpoint(every=gx.Steps(4), keep_last=None)
    fit(tmp_path, Growing(), task=LineTask(), data=line_data(), saving=saving)
    for step in steps_of(tmp_path):
        meta = json.loads((tmp_path / "checkpoints" / str(step) / "meta.json").read_text())
        assert meta["host"]["Growing"] == {"list": list(range(1, step + 1)), "scalar": {"__float__": "nan"}}


def test_host_state_that_is_no_json_is_named(tmp_path):
    class Strange(gx.Callback):
        def host_state(self):
            return {"a": {1, 2}}

    with pytest.raises(TypeError, match=r"Strange.host_state gave no JSON data: .*set"):
        fit(tmp_path, Strange(), task=LineTask(), data=line_data())
    assert steps_of(tmp_path) == [24]


@pytest.mark.behaviour("peers 85")
def test_all_are_told_before_an_error_ends_the_run(tmp_path):
    """Whatever their order: what the checkpoint keeps of the others is of its step."""

    class Counts(gx.Callback):
        def on_fit_start(self, run):
            self.steps = []

        def on_train_metrics(self, run, steps, metrics):
            self.steps.extend(steps)

        def on_exception(self, run, error):
            assert self.steps == list(range(1, run.step + 1))

    counts = Counts()
    with pytest.raises(Bad):
        fit(tmp_path, raises_in("on_train_metrics", 4), counts, steps_per_dispatch=2)
    assert counts.steps == list(range(1, steps_of(tmp_path)[-1] + 1))


@pytest.mark.behaviour("peers 85")
def test_an_error_in_the_data_after_an_error_in_a_callback(tmp_path, caplog):
    """The first is raised, and the second is not lost."""

    class Fails(gx.Callback):
        def on_exception(self, run, error):
            raise ValueError("second")

    class Data(gx.DataModule):
        def train_dataset(self, seed):
            def read(batch):
                reads.append(1)
                if len(reads) == 6:
                    raise Bad("data")
                return batch

            reads = []
            return line_data().train_dataset(seed).map(read)

    with pytest.raises(Bad, match="data"):
        fit(tmp_path, Fails(), task=LineTask(), data=Data(), steps_per_dispatch=1)
    assert "a callback failed after the error: ValueError: second" in caplog.text


@pytest.mark.behaviour("peers 29")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_each_is_told_once_of_the_error(tmp_path, kind):
    told = []

    class Tells(gx.Callback):
        def on_exception(self, run, error):
            told.append((error, run.step))

        def on_fit_end(self, run, result):
            told.append("on_fit_end")

    error = kind("mine")

    class Fails(gx.Callback):
        def next_step(self, step):
            return 2

        def on_step(self, run):
            raise error

    with pytest.raises(kind, match="mine"):
        fit(tmp_path, Tells(), Fails(), task=LineTask(), data=line_data())
    assert told == [(error, 2)]


@pytest.mark.behaviour("peers 30")
def test_an_error_at_the_start(tmp_path):
    """Those that had begun are told, so that they can close what they opened; the folder is free again."""
    told = []

    class Tells(gx.Callback):
        def __init__(self, name):
            self.name = name

        def on_fit_start(self, run):
            told.append(f"{self.name} starts")

        def on_exception(self, run, error):
            told.append(f"{self.name}: {error}")

    class Fails(gx.Callback):
        def on_fit_start(self, run):
            raise Bad("at the start")

    with pytest.raises(Bad, match="at the start"):
        fit(tmp_path, Tells("one"), Fails(), Tells("two"), task=LineTask(), data=line_data())
    assert told == ["one starts", "one: at the start"]
    assert int(fit(tmp_path, task=LineTask(), data=line_data()).state.step) == 24


@pytest.mark.behaviour("peers 84")
def test_what_is_saved_is_not_saved_again(tmp_path, monkeypatch):
    """The error comes when step 12 has just been saved."""
    written = []
    save = CheckpointFolder.save
    monkeypatch.setattr(
        CheckpointFolder, "save", lambda self, step, *rest: (written.append(step), save(self, step, *rest))
    )

    class Data(gx.DataModule):
        def train_dataset(self, seed):
            def read(index, batch):
                if index == 12:
                    raise Bad("data")
                return batch

            return line_data(rows=8 * 24).train_dataset(seed).map_with_index(read)

    saving = gx.Checkpoint(every=gx.Steps(6), keep_last=None)  # else 12 may overtake 6, which waits
    with pytest.raises(Bad, match="data"):
        fit(tmp_path, task=LineTask(), data=Data(), saving=saving, steps_per_dispatch=1)
    assert written == [6, 12]


@pytest.mark.behaviour("peers 140")
def test_data_is_set_up_once_and_asked_for_its_parts():
    asked = []

    class Data(gx.DataModule):
        def setup(self):
            asked.append("setup")

        def train_dataset(self, seed):
            asked.append("train")
            return line_data().train_dataset(seed)

        def val_dataset(self):
            asked.append("val")
            return line_data().val_dataset()

        def test_dataset(self):
            asked.append("test")
            return line_data().val_dataset()

    result = gx.Trainer(max_epochs=3).fit(LineTask(), Data())
    assert asked[0] == "setup"
    assert sorted(asked) == ["setup", "train", "val"]
    for method, part in (("validate", "val"), ("test", "test")):
        asked.clear()
        getattr(gx.Trainer(), method)(LineTask(), Data(), model=result.model)
        assert asked == ["setup", part]
