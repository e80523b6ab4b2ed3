"""`galvanax collect`: a policy's motions as data."""

import json

import jax
import mujoco
import numpy as np
import pytest

import galvanax as gx
from galvanax.cli.main import main
from galvanax.cli.runs import load_policy
from galvanax.physics import load_model
from galvanax.rendering import load_trajectory
from galvanax.tasks.collect_motions import collect_motions, save_motions
from galvanax.tasks.policy_rollout import conditioning_of


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def run(*arguments):
    main([str(word) for word in arguments])


def fails(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def motions(ppo_run, tiny_ppo, tmp_path_factory):
    """Six episodes of whatever length, from the command."""
    path = tmp_path_factory.mktemp("motions") / "motions.npz"
    run("collect", ppo_run, "--experiment", tiny_ppo, "--num-episodes", 6, "--keep-short", "--output", path)
    return read(path)


@pytest.fixture(scope="module")
def policy(ppo_run, tiny_ppo):
    model, _, env, _ = load_policy(ppo_run, "best", experiment=tiny_ppo)
    return model, env


def test_what_is_in_the_file(motions):
    shapes = {name: array.shape for name, array in motions.items()}
    assert shapes["states"] == (6, 50, 4)
    assert shapes["actions"] == (6, 50, 1)
    assert shapes["rewards"] == (6, 50)
    assert shapes["lengths"] == (6,)
    assert "conditionings" not in motions
    assert motions["states"].dtype == motions["actions"].dtype == np.float32
    assert list(motions["joint_names"]) == ["slider", "hinge"]
    assert (motions["dt"], motions["nq"], motions["nv"]) == (0.02, 2, 2)
    assert str(motions["model_name"])
    assert list(motions["action_names"]) == ["push"]
    np.testing.assert_array_equal(motions["episodes"], np.arange(6))


def test_what_a_motion_is_conditioned_on(ppo_run, tiny_ppo, motions, tmp_path, capsys):
    """A cart-pole's observation is its state with the angle's sine and cosine (written plainly here)."""
    flags = [ppo_run, "--experiment", tiny_ppo, "--num-episodes", 6, "--keep-short", "--output"]
    run("collect", *flags, tmp_path / "seen.npz", "--conditioning", "obs,obs:state", "obs")
    found = read(tmp_path / "seen.npz")
    np.testing.assert_array_equal(found["states"], motions["states"])
    rows = np.arange(50) < motions["lengths"][:, None]
    x, angle, speed, turn = np.moveaxis(found["states"][rows], -1, 0)
    seen = np.stack([x, np.cos(angle), np.sin(angle), speed, turn], -1)
    np.testing.assert_allclose(found["conditionings"][rows], np.tile(seen, 3), rtol=1e-5, atol=1e-6)
    said = fails(capsys, "collect", *flags, tmp_path / "no.npz", "--conditioning", "comand")
    assert "conditioning: CartPole has no 'comand'." in said
    assert not (tmp_path / "no.npz").exists()


def test_what_legged_robots_offer():
    """The clock and the command of a G1, without a simulation: from a state of zeros, but for those."""
    env = gx.envs.load("g1")
    start = jax.eval_shape(env.reset, jax.random.key(0))
    obs = np.arange(47.0)
    state = gx.envs.State(None, obs, 0.0, 0.0, info={"command": np.array([0.5, 0.1, -0.2])})
    assert start.obs.shape == obs.shape
    found = conditioning_of(env, state, ("command", "phase", "obs:gravity"))
    np.testing.assert_allclose(found, [0.5, 0.1, -0.2, 45, 46, 3, 4, 5])
    with pytest.raises(gx.ConfigError, match=r"G1 has no 'obs:gravty'.* Nearest: obs:gravity"):
        conditioning_of(env, state, ("obs:gravty",))


def test_the_file_is_logs_to_learn_dynamics_from(motions, tmp_path):
    np.savez(tmp_path / "motions.npz", **motions)
    lengths = np.full(6, 50)
    lengths[2] = 7
    np.savez(tmp_path / "short.npz", **(motions | {"lengths": lengths}))
    for name in ("motions", "short", "short"):  # the third time from the cache
        found = gx.read_trajectories(tmp_path / f"{name}.npz")
        expected = motions["lengths"] if name == "motions" else lengths
        assert [one.name for one in found] == [f"{tmp_path / name}.npz, trajectory {i}" for i in range(6)]
        for number, (one, length) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_array_equal(one.states, motions["states"][number, :length])
            np.testing.assert_array_equal(one.actions, motions["actions"][number, :length])
            np.testing.assert_allclose(one.timestamp, 0.02 * np.arange(length))
            assert one.nq == 2
    data = gx.TrajectoryDataModule(str(tmp_path / "motions.npz"), system="cart-pole", history=2, horizon=2)
    data.setup()
    assert data.dt == pytest.approx(0.02)
    assert len(data.trajectories("train")) == 4
    for name, message in (("dt", "no dt"), ("actions", "no actions")):
        np.savez(tmp_path / "less.npz", **{key: array for key, array in motions.items() if key != name})
        with pytest.raises(gx.DataError, match=rf"less\.npz has states and {message}"):
            gx.read_trajectories(tmp_path / "less.npz")


def test_the_file_can_be_seen(motions, tmp_path, capsys):
    source = tmp_path / "motions.npz"
    np.savez(source, **motions)
    run("render", source, "--episode", 3, "--output", tmp_path / "three.npz")
    clip = load_trajectory(tmp_path / "three.npz")
    length = motions["lengths"][3]
    np.testing.assert_array_equal(clip.qpos, motions["states"][3, :length, :2])
    np.testing.assert_array_equal(clip.qvel, motions["states"][3, :length, 2:])
    assert clip.joint_names == ("slider", "hinge")
    assert "episode=6" in fails(capsys, "render", source, "--episode", 6)
    assert "holds one motion" in fails(capsys, "render", tmp_path / "three.npz", "--episode", 1)
    assert "is a model" in fails(capsys, "render", "cart-pole", "--episode", 1)
    np.savez(source, **(motions | {"model_name": "cart-pol"}))
    assert "is no bundled model" in fails(capsys, "render", source)


def test_the_same_episodes_as_play(ppo_run, tiny_ppo, motions, tmp_path):
    run("play", ppo_run, "--experiment", tiny_ppo, "--num-episodes", 6, "--formats", "--output", tmp_path)
    episodes = json.loads((tmp_path / "play.json").read_text())["episodes"]
    np.testing.assert_allclose(motions["rewards"].sum(1), [one["return"] for one in episodes], rtol=1e-5)
    np.testing.assert_array_equal(motions["lengths"], [one["length"] for one in episodes])
    np.testing.assert_array_equal(motions["fell"], [one["fell"] for one in episodes])


def test_mujoco_itself_makes_the_same_states_of_the_actions(motions):
    model = load_model("cart-pole")
    data = mujoco.MjData(model)
    for states, actions, length in zip(motions["states"], motions["actions"], motions["lengths"], strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = states[0, :2], states[0, 2:]
        for row in range(1, length):
            data.ctrl[:] = actions[row - 1] * model.actuator_ctrlrange[:, 1]
            mujoco.mj_step(model, data, round(float(motions["dt"]) / model.opt.timestep))
            np.testing.assert_allclose(np.concatenate([data.qpos, data.qvel]), states[row], atol=1e-4)
        np.testing.assert_array_equal(states[length:], np.tile(states[length - 1], (50 - length, 1)))
        assert not actions[length:].any()


def test_shards_hold_what_one_file_holds(policy, tmp_path):
    model, env = policy
    for name, size in (("one", None), ("many", 4)):
        batches = collect_motions(model, env, 10, 20, num_envs=4)
        paths = save_motions(tmp_path / name / "motions.npz", batches, env, 10, shard_size=size)
        assert sorted((tmp_path / name).iterdir()) == paths
    assert [path.name for path in paths] == [f"motions-0000{index}-of-00003.npz" for index in range(3)]
    one, shards = read(tmp_path / "one" / "motions.npz"), [read(path) for path in paths]
    assert [len(shard["states"]) for shard in shards] == [4, 4, 2]
    for name in ("states", "actions", "rewards", "lengths", "episodes", "fell"):
        np.testing.assert_array_equal(np.concatenate([shard[name] for shard in shards]), one[name])
    for shard in shards:
        assert shard["dt"] == one["dt"]


@pytest.mark.slow
def test_episodes_are_the_same_however_many_run_side_by_side(policy):
    model, env = policy

    def collected(**settings):
        batches = list(collect_motions(model, env, 7, 30, deterministic=False, seed=3, **settings))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *(batch.arrays() for batch in batches))

    few, many = collected(num_envs=3), collected(num_envs=7)
    np.testing.assert_array_equal(few["episodes"], many["episodes"])
    np.testing.assert_allclose(few["states"], many["states"], atol=1e-4)
    # Whole ones only: those of the numbers 0, 1, 2, ... that last, in their order.
    every = collected(num_envs=7, keep_short=True)
    lasting = every["episodes"][every["lengths"] == 30]
    assert 0 < len(lasting) < 7
    np.testing.assert_array_equal(few["episodes"][: len(lasting)], lasting)
    assert (few["lengths"] == 30).all()


def test_from_the_command_line_in_shards(ppo_run, tiny_ppo, tmp_path, capsys):
    path = tmp_path / "motions.npz"
    flags = ("--experiment", tiny_ppo, "--num-episodes", 5, "--episode-length", 20, "--num-envs", 4, "--output", path)
    run("collect", ppo_run, *flags, "--shard-size", 2)
    out = capsys.readouterr().out
    assert "wrote 5 episodes of 20 steps" in out
    assert "motions-00002-of-00003.npz" in out
    assert "ended early and were left out" in out
    assert len(read(tmp_path / "motions-00002-of-00003.npz")["states"]) == 1
    assert "motions-00000-of-00003.npz is there" in fails(capsys, "collect", ppo_run, *flags)
    run("collect", ppo_run, *flags, "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["motions.npz"]


def test_a_policy_that_falls(ppo_run, tiny_ppo, tmp_path, capsys):
    arguments = ("collect", ppo_run, "--experiment", tiny_ppo, "--num-episodes", 4, "--episode-length", 400)
    arguments += ("--output", tmp_path / "m.npz")
    assert "Only 0 of 4 episodes lasted 400 steps" in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_shards(policy, tmp_path):
    model, env = policy

    def breaks():
        yield from collect_motions(model, env, 4, 20, num_envs=4)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        save_motions(tmp_path / "m.npz", breaks(), env, 8, shard_size=2)
    assert not list(tmp_path.iterdir())


def test_what_does_not_work(ppo_run, tiny_ppo, tmp_path, capsys):
    arguments = ("collect", ppo_run, "--experiment", tiny_ppo, "--num-episodes", 2)
    assert "ends in .npz" in fails(capsys, *arguments, "--output", tmp_path / "motions.csv")
    path = tmp_path / "motions.npz"
    assert "num_envs=0" in fails(capsys, *arguments, "--output", path, "--num-envs", 0)
    assert "shard_size=0" in fails(capsys, *arguments, "--output", path, "--shard-size", 0)
    assert "There is no run folder" in fails(capsys, "collect", tmp_path / "no", "--num-episodes", 2, "--output", path)
    assert "CartPole takes none" in fails(capsys, *arguments, "--output", path, "--command", 1, 0, 0)
    assert not path.exists()
