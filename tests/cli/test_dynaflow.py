"""`galvanax fit pendulum-dynaflow`, `evaluate` and `sample`, as a user calls them."""

import json

import numpy as np
import pytest

import galvanax as gx
from galvanax.cli.main import main
from galvanax.experiments.dynaflow import write_two_way_pendulum

FIT = [
    "--task.d-model", "16", "--task.num-heads", "2", "--task.depth", "1", "--task.num-samples", "2",
    "--task.ode-steps", "2", "--trainer.max-epochs", "2", "--trainer.val-every", "epochs:1", "--no-evaluate",
]  # fmt: skip


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    path = tmp_path_factory.mktemp("motions") / "demonstrations.npz"
    write_two_way_pendulum(path, num_trajectories=200)
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, motions):
    run_dir = tmp_path_factory.mktemp("runs") / "dynaflow"
    main(["fit", "pendulum-dynaflow", "--data", str(motions), *FIT, "--trainer.run-dir", str(run_dir)])
    return run_dir


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_samples_are_motions_to_learn_from(run_dir, tmp_path, capsys):
    path = tmp_path / "samples.npz"
    command = ["sample", run_dir, "--x0", 0.1, -0.2, "--num-samples", 70, "--ode-steps", 3, "--output", path]
    main([str(argument) for argument in command])
    assert "70 trajectories of 16 steps" in capsys.readouterr().out
    with np.load(path, allow_pickle=False) as arrays:
        states, actions = arrays["states"], arrays["actions"]
        assert float(arrays["dt"]) == pytest.approx(0.1)
    assert states.shape == (70, 17, 2)
    assert actions.shape == (70, 16, 1)
    np.testing.assert_allclose(states[:, 0], np.tile([0.1, -0.2], (70, 1)), atol=1e-7)
    assert len(np.unique(states[:, -1, 0])) == 70
    task, _ = gx.DynaFlowTask.load(run_dir)
    np.testing.assert_allclose(gx.physics.rollout(task.physics, states[:, 0], actions), states, atol=1e-5)
    data = gx.MotionDataModule(str(path), horizon=16, batch_size=8)
    data.setup()
    assert data.state_dim == 2

    assert "is there" in refused(command, capsys)
    main([str(argument) for argument in [*command, "--overwrite", "--no-use-ema"]])
    with np.load(path) as arrays:
        assert np.abs(arrays["states"] - states).max() > 0, "averaged weights are others"


def test_starts_come_from_the_test_trajectories(run_dir, tmp_path):
    path = tmp_path / "samples.npz"
    main(["sample", str(run_dir), "--num-samples", "5", "--output", str(path)])
    _, data, _ = gx_run(run_dir)
    data.setup()
    first = data.test_dataset()[0]["states"][:5, 0]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["states"][:, 0], first)


def gx_run(run_dir):
    from galvanax.cli.runs import load_run

    return load_run(run_dir)


@pytest.mark.slow
def test_evaluate_takes_the_original_options(run_dir, motions, tmp_path):
    main(
        [
            "evaluate", str(run_dir), "--data", str(motions), "--num-samples", "3", "--batch", "16", "--ode-steps", "1",
            "--no-use-ema", "--num-examples", "6", "--output-dir", str(tmp_path),
        ]
    )  # fmt: skip
    figures = json.loads((tmp_path / "test.json").read_text())
    assert (figures["samples_per_start"], figures["ode_steps"], figures["starts"]) == (3, 1, 6)
    assert {"tre", "min_tre", "sae", "mode_shares", "mean_trajectory_tre"} <= figures.keys()
    assert (tmp_path / "plots" / "samples.png").is_file()


@pytest.mark.slow
def test_a_comparator_beside(run_dir, motions, tmp_path):
    other = tmp_path / "states"
    main(["fit", "pendulum-stateflow", "--data", str(motions), *FIT, "--trainer.run-dir", str(other)])
    arguments = ["--beside", str(other), "--num-examples", "4", "--output-dir", str(tmp_path / "out")]
    main(["evaluate", str(run_dir), *arguments])
    figures = json.loads((tmp_path / "out" / "test.json").read_text())
    assert figures["beside/states"]["sae"] > 10 * figures["sae"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--x0", "0.1"], "x0 has 1 numbers; this run's have 2"),
        (["--condition", "1"], "condition has 1 numbers; this run's have 0"),
        (["--num-samples", "0"], "num_samples=0"),
        (["--ode-steps", "0"], "ode_steps=0"),
        (["--output", "samples.csv"], "ends in .npz"),
        (["--checkpoint", "999"], "No checkpoint of step 999"),
    ],
)
def test_sample_refuses(run_dir, tmp_path, capsys, flags, message):
    assert message in refused(["sample", run_dir, "--output", tmp_path / "s.npz", *flags], capsys)
    assert not list(tmp_path.iterdir())


def test_missing_motions_say_how_they_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, policy in (("cartpole-dynaflow", "cartpole-ppo"), ("go2-dynaflow", "go2-ppo")):
        error = refused(["fit", name], capsys)
        assert f"galvanax fit {policy}" in error
        assert "galvanax collect" in error
        assert "--data FILE.npz" in error
