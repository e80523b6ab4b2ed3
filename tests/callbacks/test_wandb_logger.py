"""Weights & Biases: what it is told, and what its own offline files hold. Nothing here needs a network."""

import importlib.util
import json
import struct
import sys
import types

import pytest
from support import LineTask, line_data

import galvanax as gx


class StandIn(types.ModuleType):
    """The part of the package that the logger calls; remembers the calls. With `online`, it has rows of runs by id."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.run, self.inits, self.rows, self.configs, self.exits = None, [], [], [], []
        self.refuse: str | None = None

    def init(self, **settings):
        if self.refuse:
            raise self.Error(self.refuse)
        self.inits.append(settings)
        return self.session(settings["id"] or f"fresh-{len(self.inits)}")

    def session(self, name):
        def update(config, allow_val_change):
            assert allow_val_change
            self.configs.append(json.loads(json.dumps(config)))

        def log(metrics, step):
            self.rows.append((name, step, metrics))

        def finish(exit_code):
            self.exits.append(exit_code)

        return types.SimpleNamespace(id=name, log=log, finish=finish, config=types.SimpleNamespace(update=update))


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def fit(folder, *callbacks, steps=20, resume=None, **settings):
    """8 steps an epoch."""
    trainer = gx.Trainer(
        max_steps=steps, run_dir=folder, log_every=5, val_every=gx.Steps(8), callbacks=callbacks, **settings
    )
    return trainer.fit(LineTask(), line_data(), resume=resume)


def test_what_wandb_is_told(tmp_path, wandb):
    logger = gx.WandBLogger("arms", "first", "offline", "lab", "seeds", ("quick", "test"))
    result = fit(tmp_path / "run", logger)
    assert wandb.inits == [
        {
            "project": "arms", "name": "first", "mode": "offline", "entity": "lab", "group": "seeds",
            "tags": ("quick", "test"), "dir": str(tmp_path / "run"), "id": None, "resume": "allow",
        }
    ]  # fmt: skip
    assert wandb.configs == [json.loads((tmp_path / "run" / "config.json").read_text())]
    assert [(step, sorted(metrics)[1:]) for _, step, metrics in wandb.rows] == [
        (5, ["train/grad_norm", "train/loss"]),
        (8, ["val/loss"]),
        (10, ["train/grad_norm", "train/loss"]),
        (15, ["train/grad_norm", "train/loss"]),
        (16, ["val/loss"]),
        (20, ["train/grad_norm", "train/loss"]),
        (20, ["val/loss"]),
    ]
    assert [metrics["epoch"] for _, _, metrics in wandb.rows] == [step / 8 for _, step, _ in wandb.rows]
    last = {name: value for _, _, metrics in wandb.rows for name, value in metrics.items()}
    assert last == {**result.metrics, "epoch": 2.5}
    assert wandb.exits == [0]


def test_what_is_left_to_wandb(tmp_path, wandb):
    """Mode, entity and group, so that its own environment variables hold; the folder names the run."""
    fit(tmp_path / "my-run", gx.WandBLogger())
    (settings,) = wandb.inits
    assert (settings["project"], settings["name"]) == ("galvanax", "my-run")
    assert settings["mode"] is settings["entity"] is settings["group"] is None


class Crash(gx.Callback):
    def __init__(self, at, error):
        self.at, self.error = at, error

    def next_step(self, step):
        return self.at if step < self.at else None

    def on_step(self, run):
        raise self.error


@pytest.mark.parametrize(
    ("error", "exit_code"), [(RuntimeError("crash"), 1), (KeyboardInterrupt(), 1), (gx.Preempted("SIGTERM", 3), 75)]
)
def test_a_run_that_fails_has_failed(tmp_path, wandb, error, exit_code):
    with pytest.raises(type(error)):
        fit(tmp_path, gx.WandBLogger(), Crash(3, error))
    assert wandb.exits == [exit_code]


def test_a_resumed_run_is_the_same_wandb_run(tmp_path, wandb):
    saving = gx.Checkpoint(every=gx.Steps(10))
    with pytest.raises(RuntimeError):
        fit(tmp_path / "run", gx.WandBLogger(), saving, Crash(13, RuntimeError()))
    fit(tmp_path / "run", gx.WandBLogger(), saving, resume="last")
    assert [settings["id"] for settings in wandb.inits] == [None, "fresh-1"]
    assert {name for name, _, _ in wandb.rows} == {"fresh-1"}
    rows = wandb.rows.copy()
    assert [step for _, step, _ in rows if step > 10] == [15, 16, 20, 20]
    wandb.rows.clear()
    fit(tmp_path / "whole", gx.WandBLogger())
    assert [row[1:] for row in wandb.rows] == [row[1:] for row in rows]


def test_a_disabled_stretch_keeps_the_id(tmp_path, wandb):
    saving = gx.Checkpoint()
    for steps, mode in ((4, None), (8, "disabled"), (12, None)):
        fit(tmp_path, gx.WandBLogger(mode=mode), saving, steps=steps, resume="auto")
    assert [settings["id"] for settings in wandb.inits] == [None, "fresh-1"]
    assert [step for _, step, _ in wandb.rows] == [4, 4, 10, 12, 12]
    assert wandb.exits == [0, 0]


def test_a_logger_that_joins_a_resumed_run(tmp_path, wandb):
    fit(tmp_path, gx.Checkpoint(), steps=4)
    fit(tmp_path, gx.Checkpoint(), gx.WandBLogger(), steps=8, resume="last")
    assert [settings["id"] for settings in wandb.inits] == [None]
    assert [step for _, step, _ in wandb.rows] == [5, 8, 8]
    assert wandb.exits == [0]


def test_an_active_run_is_used_and_left_open(tmp_path, wandb):
    wandb.run = wandb.session("of a sweep")
    fit(tmp_path, gx.WandBLogger())
    assert {name for name, _, _ in wandb.rows} == {"of a sweep"}
    assert (wandb.inits, wandb.exits, len(wandb.configs)) == ([], [], 1)


def test_disabled_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    fit(tmp_path, gx.WandBLogger(mode="disabled"), gx.Checkpoint())
    assert not (tmp_path / "wandb").exists()


class Compiled(gx.Callback):
    """Fails the test where a step was taken."""

    def on_train_metrics(self, run, steps, metrics):
        pytest.fail("a step was taken")


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")], ids=["nothing", "a folder of that name"])
def test_a_missing_package_is_found_before_the_first_step(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "wandb", found)
    with pytest.raises(gx.ConfigError, match=r'needs the package wandb: pip install "galvanax\[wandb\]"'):
        fit(tmp_path, gx.WandBLogger(), Compiled())


def test_a_refusal_is_found_before_the_first_step(tmp_path, wandb):
    wandb.refuse = "api_key not configured."
    with pytest.raises(gx.ConfigError, match=r'mode=None\): api_key not configured\. Or log with mode="offline"'):
        fit(tmp_path, gx.WandBLogger(), Compiled())


def test_an_unknown_mode():
    with pytest.raises(gx.ConfigError, match=r"WandBLogger.mode='dryrun': expected \"online\""):
        gx.WandBLogger(mode="dryrun")


def test_overwriting_a_run_deletes_its_offline_files(tmp_path):
    fit(tmp_path)
    (tmp_path / "wandb").mkdir()
    fit(tmp_path, overwrite=True)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("experiment", ["pendulum", "double-cart-pole-gru", "cartpole-ppo"])
def test_the_command_line_turns_it_on(experiment):
    from galvanax.cli.fit import parse
    from galvanax.experiments.registry import EXPERIMENTS

    assert parse(experiment, EXPERIMENTS[experiment](), []).experiment.callbacks["wandb"].mode == "disabled"
    flags = "--callbacks.wandb.mode online --callbacks.wandb.project arms --callbacks.wandb.name first"
    command = parse(experiment, EXPERIMENTS[experiment](), flags.split())
    assert command.experiment.callbacks["wandb"] == gx.WandBLogger("arms", "first", "online")


def records(path):
    """W&B's records: a header of 7 bytes, then LevelDB's log, blocks of 32 KiB that hold pieces of records."""
    from wandb.proto import wandb_internal_pb2

    data, at, record, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        rest_of_block = 2**15 - at % 2**15
        if rest_of_block < 7 or kind == 0:
            at += rest_of_block
            continue
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last piece
            found.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return found


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_offline_files_hold_the_run(tmp_path, monkeypatch):
    """As the package itself wrote them."""
    for name, value in {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    fit(tmp_path, gx.WandBLogger("arms", tags=("test",)), gx.Checkpoint(), gx.CSVLogger(), steps=16)
    fit(tmp_path, gx.WandBLogger("arms"), gx.Checkpoint(), gx.CSVLogger(), steps=20, resume="last")
    import wandb

    wandb.teardown()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    first, second = ([*records(next(folder.glob("run-*.wandb")))] for folder in folders)

    (start,) = (record.run for record in first if record.WhichOneof("record_type") == "run")
    assert (start.project, start.display_name, list(start.tags)) == ("arms", tmp_path.name, ["test"])
    assert start.run_id in folders[0].name
    assert start.run_id in folders[1].name
    updates = [update for record in first for part in (record.run, record) for update in part.config.update]
    config = {update.key: json.loads(update.value_json) for update in updates}
    written = json.loads((tmp_path / "config.json").read_text())
    assert config["task"] == written["task"]
    assert config["data"] == written["data"]

    history: dict[int, dict[str, float]] = {}
    for record in [*first, *second]:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.setdefault(int(row["_step"]), {}).update(row)
    table: dict[int, dict[str, str]] = {}
    import csv

    with (tmp_path / "metrics.csv").open() as file:
        for line in csv.DictReader(file):
            table.setdefault(int(line["step"]), {}).update({name: value for name, value in line.items() if value})
    assert sorted(history) == sorted(table) == [5, 8, 10, 15, 16, 20]
    for step, line in table.items():
        for name in line.keys() - {"step"}:
            assert history[step][name] == float(line[name]), (step, name)
    for part in (first, second):
        assert [record.exit.exit_code for record in part if record.WhichOneof("record_type") == "exit"] == [0]
