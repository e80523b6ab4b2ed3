"""`galvanax play`: what a run's policy does."""

import json
import shutil

import numpy as np
import pytest

from galvanax.cli.main import main
from galvanax.cli.runs import load_run
from galvanax.rendering import load_trajectory


def fails(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def played(ppo_run, tiny_ppo, tmp_path_factory):
    """The folder that `play` wrote."""
    folder = tmp_path_factory.mktemp("played")
    own = ["--experiment", tiny_ppo]
    main(["play", str(ppo_run), *own, "--num-episodes", "6", "--formats", "npz", "html", "--output", str(folder)])
    return folder


def test_figures(played, ppo_run):
    figures = json.loads((played / "play.json").read_text())
    assert (figures["num_episodes"], figures["num_steps"], figures["seed"], figures["command"]) == (6, 50, 0, None)
    assert figures["checkpoint"].startswith(str(ppo_run / "checkpoints"))
    returns = [one["return"] for one in figures["episodes"]]
    lengths = [one["length"] for one in figures["episodes"]]
    for name, values in (("episode_return", returns), ("episode_length", lengths)):
        expected = {"mean": np.mean(values), "std": np.std(values), "min": min(values), "max": max(values)}
        assert figures[name] == pytest.approx(expected)
    falls = [one["fell"] for one in figures["episodes"]]
    assert falls.count(True) == figures["falls"] == 6 - figures["time_limits"] > 0
    assert all(length == 50 for length, fell in zip(lengths, falls, strict=True) if not fell)
    assert 0.8 < figures["metrics"]["upright"] < 1


def test_the_first_episode_is_shown(played):
    first = json.loads((played / "play.json").read_text())["episodes"][0]
    clip = load_trajectory(played / "episode_0.npz")
    assert len(clip.qpos) == first["length"]
    assert clip.extra["reward"].sum() == pytest.approx(first["return"], rel=1e-5)
    assert "<title>run, step" in (played / "episode_0.html").read_text()


def test_the_table_and_where_files_go(ppo_run, tiny_ppo, capsys):
    flags = ["--num-episodes", "7", "--num-steps", "30", "--formats", "--stochastic", "--seed", "7"]
    main(["play", str(ppo_run), "--experiment", tiny_ppo, *flags])
    out = capsys.readouterr().out
    assert "episode_return" in out
    assert "of 7" in out
    assert "upright" in out
    assert out.rstrip().endswith("play.json")
    assert [path.name for path in (ppo_run / "play").iterdir()] == ["play.json"]
    figures = json.loads((ppo_run / "play" / "play.json").read_text())
    assert (figures["num_episodes"], figures["seed"], figures["stochastic"]) == (7, 7, True)
    assert figures["episode_length"]["max"] == 30
    assert figures["time_limits"] > 0


def test_the_run_has_recorded_its_policy(ppo_run):
    clips = [load_trajectory(ppo_run / "videos" / f"step_0000000{step}.npz") for step in (1, 2)]
    for clip in clips:
        assert 1 < len(clip.qpos) <= 50
        np.testing.assert_array_equal(clip.qpos[0], clips[0].qpos[0])
    assert not np.allclose(clips[0].extra["action"][:10], clips[1].extra["action"][:10], rtol=1e-6)


def test_what_is_no_policys_run(ppo_run, tmp_path, capsys):
    assert f"Nearest: {ppo_run}." in fails(capsys, "play", ppo_run.with_name("rum"))
    other = tmp_path / "pendulum"
    other.mkdir()
    config = {
        "trainer": {"name": "pendulum"},
        "task": {"type": "AccelerationTask"},
        "data": {"type": "RolloutDataModule"},
    }
    (other / "config.json").write_text(json.dumps(config))
    assert "is a run of AccelerationTask; expected one with a policy" in fails(capsys, "play", other)
    (other / "config.json").write_text(json.dumps(config | {"trainer": {"name": None}}))
    assert "not started by `galvanax fit`" in fails(capsys, "play", other)


def test_what_can_not_be_played(ppo_run, tiny_ppo, tmp_path, capsys):
    own = ("--experiment", tiny_ppo)
    assert "No checkpoint of step 9" in fails(capsys, "play", ppo_run, *own, "--checkpoint", "9")
    assert "CartPole takes none" in fails(capsys, "play", ppo_run, *own, "--command", "-0.5", "0", "0")
    assert "num_episodes=0" in fails(capsys, "play", ppo_run, *own, "--num-episodes", "0")
    assert "num_steps=0" in fails(capsys, "play", ppo_run, *own, "--num-steps", "0")
    run = tmp_path / "run"
    shutil.copytree(ppo_run, run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["environment"] = "brax:fast"
    (run / "config.json").write_text(json.dumps(config))
    assert "Fast has no MuJoCo model" in fails(capsys, "play", run, *own)
    assert "Fast has no MuJoCo model" in fails(
        capsys, "collect", run, *own, "--num-episodes", "1", "--output", tmp_path / "motions.npz"
    )


def test_an_environment_that_json_can_not_hold_is_the_experiments_own(tmp_path):
    """As brax's and Playground's objects: config.json has their `repr`."""
    file = tmp_path / "own_object.py"
    file.write_text(
        "import galvanax as gx\n"
        "class Own:\n    action_size = observation_size = 1\n    reset = step = None\n"
        "experiment = gx.Experiment(gx.PPOTask(), gx.EnvironmentDataModule(Own(), num_envs=8), gx.Trainer(max_steps=1))"
    )
    settings = {"type": "EnvironmentDataModule", "environment": "<own_object.Own object at 0x7f>", "num_envs": 16}
    config = {"trainer": {"name": f"{file}:experiment"}, "task": {"type": "PPOTask"}, "data": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    experiment, data, read = load_run(tmp_path, f"{file}:experiment")
    assert data.environment is experiment.data.environment
    assert data.num_envs == 16
    assert read == config
