"""A policy as one file: ONNX and StableHLO do what the model does, and say what a robot must know."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from flax import nnx

import galvanax as gx
from galvanax.cli.export import export_policy
from galvanax.cli.main import main
from galvanax.envs.classic.pendulum import Pendulum
from galvanax.envs.height_scan import HeightScan
from galvanax.envs.legged.g1 import G1
from galvanax.envs.legged.go2 import Go2
from galvanax.networks.actor_critic import ActorCritic
from galvanax.networks.depth_encoder import Sight
from galvanax.networks.mlp import ACTIVATIONS
from galvanax.tasks.policy_export import export_onnx, export_stablehlo, policy_metadata

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OBS, ACTIONS, TOLERANCE = 48, 12, 1e-5
SPREAD = np.geomspace(0.01, 5, OBS)
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def observations(rows, seed=1):
    """As a robot's: of very different sizes, and far from 0."""
    return (np.random.default_rng(seed).normal(size=(rows, OBS)) * SPREAD + 3).astype(np.float32)


def make(
    distribution="tanh_normal", normalize=True, memory_size=0, activation="swish", hidden=(64, 32), cls=ActorCritic
):
    """A policy with statistics, and weights that are nowhere zero."""
    model = cls(
        {"state": OBS, "privileged_state": 5},
        ACTIONS,
        policy_hidden=hidden,
        value_hidden=(8,),
        activation=activation,
        distribution=distribution,
        memory_size=memory_size,
        normalize=normalize,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    for layer in model.policy.layers:
        layer.bias[...] = jnp.asarray(rng.normal(size=layer.bias.shape) * 0.3, jnp.float32)
    model.update_statistics({"state": jnp.asarray(observations(4000, 0)), "privileged_state": jnp.ones((2, 5))})
    return model


def act(model, obs, memory=None):
    memory = model.initial_memory(len(obs)) if memory is None else memory
    with jax.default_matmul_precision("highest"):
        distribution, memory = nnx.jit(lambda model, obs, memory: model.act(obs, memory))(model, obs, memory)
    return np.asarray(distribution.mode()), np.asarray(memory)


def open_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip(("obs", "memory"), arrays, strict=False)))


def open_jax(path):
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda *arrays: [np.asarray(leaf) for leaf in jax.tree.leaves(exported.call(*arrays))]


FORMATS = {"policy.onnx": (export_onnx, open_onnx), "policy.jax": (export_stablehlo, open_jax)}
KINDS = list(itertools.product(("tanh_normal", "normal"), (True, False), (0, 32)))


@pytest.mark.behaviour("reports 19")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("distribution", "normalize", "memory_size"), KINDS)
def test_acts_as_the_model(tmp_path, name, distribution, normalize, memory_size):
    write, open_file = FORMATS[name]
    model = make(distribution, normalize, memory_size)
    run = open_file(write(tmp_path / name, model))
    obs = observations(1000)
    memory = np.tanh(np.random.default_rng(2).normal(size=(1000, memory_size))).astype(np.float32)
    wanted = act(model, obs, memory)
    for rows in (1, 7, 1000):
        found = run(obs[:rows], *([memory[:rows]] if memory_size else []))
        assert len(found) == (2 if memory_size else 1)
        for one, other in zip(found, wanted, strict=False):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other[:rows], atol=TOLERANCE, rtol=0)


@pytest.mark.behaviour("reports 19")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(tmp_path, activation):
    model = make(activation=activation, distribution="normal", memory_size=0, hidden=(512, 256, 128))
    (action,) = open_onnx(export_onnx(tmp_path / "policy.onnx", model))(observations(1000))
    np.testing.assert_allclose(action, act(model, observations(1000))[0], atol=TOLERANCE, rtol=0)


@pytest.mark.behaviour("reports 19")
@pytest.mark.parametrize("name", FORMATS)
def test_a_memory_over_fifty_steps(tmp_path, name):
    write, open_file = FORMATS[name]
    model = make(memory_size=32)
    run = open_file(write(tmp_path / name, model))
    memory = ours = np.zeros((3, 32), np.float32)
    for step in range(50):
        obs = observations(3, seed=step)
        action, memory = run(obs, memory)
        wanted, ours = act(model, obs, ours)
        np.testing.assert_allclose(action, wanted, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(memory, ours, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("memory_size", [0, 8])
def test_a_policy_that_sees(tmp_path, memory_size):
    """Depth in metres is the second input: beyond the range, unknown, of an odd height, for any batch."""
    model = ActorCritic(
        {"state": 5},
        2,
        policy_hidden=(16,),
        value_hidden=(8,),
        memory_size=memory_size,
        actor_sight=Sight((15, 8), 4.0, (4, 6), 7),
        critic_sight=Sight((15, 8), 4.0, (3,), 2),
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    for convolution in model.depth_encoder.convolutions:
        convolution.bias[...] = jnp.asarray(rng.normal(size=convolution.bias.shape), jnp.float32)
    model.update_statistics({"state": jnp.asarray(rng.normal(3, 2, size=(100, 5)), jnp.float32)})
    arrays = {"obs": rng.normal(size=(9, 5)), "depth": rng.uniform(-1, 6, size=(9, 15, 8))}
    arrays["depth"][0, 3] = np.nan
    if memory_size:
        arrays["memory"] = np.tanh(rng.normal(size=(9, memory_size)))
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    seen = {"state": jnp.asarray(arrays["obs"]), "depth": jnp.asarray(arrays["depth"])}
    wanted = np.asarray(model.act(seen, jnp.asarray(arrays.get("memory", np.zeros((9, 0)))))[0].mode())
    blank = model.act({**seen, "depth": 0 * seen["depth"]}, model.initial_memory(9))[0].mode()
    assert np.abs(wanted - blank).max() > 1e-2  # it does look

    path = export_onnx(tmp_path / "policy.onnx", model)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == list(arrays)
    call = open_jax(export_stablehlo(tmp_path / "policy.jax", model))
    for rows in (1, 9):
        part = {name: array[:rows] for name, array in arrays.items()}
        np.testing.assert_allclose(session.run(["action"], part)[0], wanted[:rows], atol=TOLERANCE)
        np.testing.assert_allclose(call(*part.values())[0], wanted[:rows], atol=TOLERANCE)
    about = json.loads((tmp_path / "policy.onnx.json").read_text())
    assert about["inputs"]["depth"] == ["batch", 15, 8]
    assert about["depth_range"] == 4.0


def test_metadata_of_a_camera():
    about = policy_metadata(gx.envs.load("ledge"))["camera"]
    assert (about["width"], about["height"], about["max_distance"], about["fovy"]) == (8, 16, 5.0, 70.0)
    assert about["body"] == "cart"
    assert about["position"] == pytest.approx([-0.2, 0, 0.5])
    # A camera looks along its -z: here 35 degrees down, ahead.
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, np.array(about["quaternion"]))
    angle = np.radians(35)
    np.testing.assert_allclose(-turn.reshape(3, 3)[:, 2], [np.cos(angle), 0, -np.sin(angle)], atol=1e-4)


def test_before_anything_was_observed(tmp_path):
    model = ActorCritic(3, 2, policy_hidden=(), value_hidden=(), rngs=nnx.Rngs(0))
    obs = np.array([[1.0, -30.0, 0.5]], np.float32)
    wanted = act(model, obs)[0]
    for name, (write, open_file) in FORMATS.items():
        np.testing.assert_allclose(open_file(write(tmp_path / name, model))(obs)[0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("name", FORMATS)
def test_far_observations_are_clipped(tmp_path, name):
    write, open_file = FORMATS[name]
    model = make()
    run = open_file(write(tmp_path / name, model))
    far = (3 + SPREAD * np.array([[11.0], [-11.0], [500.0]])).astype(np.float32)
    np.testing.assert_allclose(run(far)[0], act(model, far)[0], atol=TOLERANCE)
    np.testing.assert_allclose(run(far)[0][0], run(far)[0][2], atol=TOLERANCE)


def test_the_graph_is_for_old_runtimes(tmp_path):
    graph = onnx.load(export_onnx(tmp_path / "policy.onnx", make(memory_size=32)))
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    assert graph.ir_version == 8
    assert [value.name for value in graph.graph.input] == ["obs", "memory"]
    assert [value.name for value in graph.graph.output] == ["action", "memory_out"]


def test_stablehlo_needs_jax_only(tmp_path):
    model = make(memory_size=8)
    path = export_stablehlo(tmp_path / "policy.jax", model)
    np.save(tmp_path / "obs.npy", observations(7))
    program = (
        "import sys, pathlib, numpy, jax, jax.export\n"
        "policy = jax.export.deserialize(bytearray(pathlib.Path('policy.jax').read_bytes()))\n"
        "action, memory = policy.call(numpy.load('obs.npy'), numpy.zeros((7, 8), 'float32'))\n"
        "numpy.save('action.npy', action)\n"
        "assert not {'galvanax', 'flax', 'brax', 'mujoco'} & set(sys.modules)\n"
        "print(policy.platforms)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('cpu', 'cuda', 'tpu')"
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), act(model, observations(7))[0], atol=TOLERANCE)
    assert json.loads((path.parent / "policy.jax.json").read_text())["inputs"]["memory"] == ["batch", 8]


# What a robot must know.


def test_metadata_survives(tmp_path):
    about = {**policy_metadata(Go2()), "step": 300, "free": {"text": "größer", "list": [1.5, None]}}
    path = export_onnx(tmp_path / "new" / "policy.onnx", make(), about)
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert json.loads((path.parent / "policy.onnx.json").read_text()) == found
    own = {name: found.pop(name) for name in ("galvanax_version", "inputs", "outputs")}
    assert found == json.loads(json.dumps(about))
    assert own["inputs"] == {"obs": ["batch", OBS]}
    assert own["outputs"] == {"action": ["batch", ACTIONS]}
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["policy.onnx", "policy.onnx.json"]


def test_metadata_of_a_robot():
    env = Go2()
    about = policy_metadata(env)
    assert about["environment"] == "Go2"
    assert about["model"] == "go2"
    assert about["joint_names"] == list(env.joints)
    assert about["default_pose"] == list(env.default_pose)
    assert about["kp"] == [20.0] * 12
    assert about["kd"] == [0.5] * 12
    assert about["torque_limits"][:3] == pytest.approx([23.7, 23.7, 35.55])
    assert (about["action_scale"], about["control_dt"]) == (0.25, 0.02)
    # The robot's motors start with the right leg, the action with the left one.
    motors = [about["joint_names"][joint] for joint in about["actuator_joints"]]
    assert motors == [f"{name}_joint" for name in about["actuator_names"]]
    assert motors[0] == "FR_hip_joint"
    assert about["observation_layout"]["command"] == [9, 12]
    assert about["observation_scales"]["command"] == [2.0, 2.0, 0.25]
    assert about["observation_scales"].keys() == about["observation_layout"].keys()
    assert about["command_ranges"] == {name: [-1.0, 1.0] for name in ("lin_vel_x", "lin_vel_y", "ang_vel_yaw")}
    assert "gait_period" not in about
    assert policy_metadata(G1())["gait_period"] == 0.8
    scanning = policy_metadata(Go2(height_scan=HeightScan(scale=4.0)))
    assert scanning["observation_scales"]["height_scan"] == 4.0
    assert scanning["height_scan"]["x"] == (-0.8, 0.8, 17)


def test_metadata_of_other_environments():
    about = policy_metadata(Pendulum())
    assert about.keys() == {"environment", "control_dt", "actuator_names", "actuator_ranges"}
    assert (about["environment"], about["control_dt"]) == ("Pendulum", 0.04)
    assert np.shape(about["actuator_ranges"]) == (1, 2)
    json.dumps(about, allow_nan=False)

    class Foreign:
        """The least that brax's convention asks for."""

        action_size, observation_size = 1, 2

    assert policy_metadata(Foreign()) == {"environment": "Foreign"}


@pytest.mark.parametrize("env", [Go2(), G1(privileged=True)], ids=["go2", "g1"])
def test_the_program_of_the_docs(tmp_path, monkeypatch, env):
    """It sees what the environment sees, acts as the model, and sends each motor its joint's target."""
    env = env.evaluation()
    monkeypatch.chdir(tmp_path)
    state = jax.jit(env.reset)(jax.random.key(1))
    obs = state.obs["state"] if env.privileged else state.obs
    model = ActorCritic(len(obs), 12, policy_hidden=(32,), value_hidden=(8,), distribution="normal", rngs=nnx.Rngs(1))
    export_policy(Path("policy.onnx"), model, env, step=5)
    (program,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "onnxruntime" in block
    )
    robot = {}
    exec(program, robot)

    from galvanax.envs.legged.legged import trunk_motion

    data = state.pipeline_state
    lin_vel, ang_vel, gravity = (np.asarray(value) for value in trunk_motion(data))
    order = [env.layout.joints[joint] for joint in env.layout.torque_of]
    addresses = [(env.mj_model.joint(name).qposadr[0], env.mj_model.joint(name).dofadr[0]) for name in order]
    q = np.array([data.qpos[at] for at, _ in addresses])
    dq = np.array([data.qvel[at] for _, at in addresses])
    seen = []
    observe = robot["observe"]
    robot["observe"] = lambda measured: seen.append(observe(measured)) or seen[0]
    action = robot["control_step"](
        q, dq, ang_vel, gravity, np.asarray(state.info["command"]), np.zeros(12), 0.0, lin_vel=lin_vel
    )
    np.testing.assert_allclose(seen[0][0], obs, atol=1e-5)
    np.testing.assert_allclose(action, act(model, obs[None])[0][0], atol=TOLERANCE)
    targets = dict(zip(order, robot["targets"](action), strict=True))
    for name, default, one in zip(env.joints, env.default_pose, action, strict=True):
        assert targets[name] == pytest.approx(default + env.action_scale * one)


# What is wrong.


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = export_onnx(tmp_path / "policy.onnx", make(), {"step": 1})
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def full_disk(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(gx.DataError, match=r"policy.onnx can't be written: No space left"):
        export_onnx(path, make("normal"), {"step": 2})
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


class Doubled(ActorCritic):
    """Acts twice as hard as its parts say."""

    def act(self, obs, memory):
        distribution, memory = super().act(obs, memory)
        distribution.loc = distribution.loc * 2
        return distribution, memory


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    for write, _ in FORMATS.values():
        with pytest.raises(gx.ConfigError, match="A Linear is no policy: expected the ActorCritic of a PPOTask"):
            write(tmp_path / "policy", nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
        with pytest.raises(gx.ConfigError, match=r"metadata\['kp'\]=nan is no JSON"):
            write(tmp_path / "policy", make(), {"kp": float("nan")})
    with pytest.raises(gx.ConfigError, match=r"Doubled doesn't compute what its ONNX graph does .*\.jax file"):
        export_onnx(tmp_path / "policy.onnx", make(cls=Doubled))
    assert not list(tmp_path.iterdir())
    # Another way of acting is traced as it is.
    model = make(cls=Doubled)
    run = open_jax(export_stablehlo(tmp_path / "policy.jax", model))
    np.testing.assert_allclose(run(observations(5))[0], act(model, observations(5))[0], atol=TOLERANCE)

    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "galvanax.tasks.policy_onnx", raising=False)
    with pytest.raises(gx.ConfigError, match=r'pip install "galvanax\[onnx\]"'):
        export_onnx(tmp_path / "policy.onnx", make())


# The command.


OWN = '''
import dataclasses
import jax
import jax.numpy as jnp
import galvanax as gx
from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.envs import State
from galvanax.tasks.ppo import PPOTask

@dataclasses.dataclass(frozen=True)
class Point:
    """A point that is to be at the origin."""
    speed: float = 0.1
    action_size = 1
    observation_size = 2
    dt = 0.5

    def reset(self, rng):
        place = jax.random.normal(rng, (2,))
        return State(place, place, jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        place = state.pipeline_state + self.speed * action
        return state.replace(pipeline_state=place, obs=place, reward=-jnp.abs(place).sum())

experiment = gx.Experiment(
    PPOTask(unroll_length=4, num_minibatches=2, num_epochs=1, policy_hidden=(8,), value_hidden=(8,), memory_size=4),
    EnvironmentDataModule(Point(), num_envs=8, episode_length=5, num_eval_episodes=2),
    gx.Trainer(max_steps=2, run_dir="point"),
    {"checkpoint": gx.Checkpoint()},
)
line = gx.Experiment(
    __import__("support").LineTask(), __import__("support").line_data(), gx.Trainer(max_steps=1, run_dir="line"),
    {"checkpoint": gx.Checkpoint()},
)
'''


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    main(["fit", "own.py:experiment"])
    model = gx.PPOTask.load("point")[1]
    obs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    wanted = act(model, obs)
    for name, (_, open_file) in FORMATS.items():
        main(["export", "point", "--experiment", "own.py:experiment", "--output", name])
        assert f"wrote {name}" in capsys.readouterr().out
        for one, other in zip(open_file(Path(name))(obs, np.zeros((5, 4), np.float32)), wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=TOLERANCE)
        about = json.loads(Path(f"{name}.json").read_text())
        assert (about["step"], about["environment"], about["control_dt"]) == (2, "Point", 0.5)
    main(["export", "point", "--output", "weights.safetensors"])

    error = fails(capsys, "export", "point", "--output", "policy.pt")
    assert "output=policy.pt: expected a name with one of these suffixes" in error
    assert all(suffix in error for suffix in (".safetensors", ".onnx", ".jax"))
    own = ("--experiment", "own.py:experiment", "--output", "p.onnx")
    assert "No checkpoint of step 7" in fails(capsys, "export", "point", *own, "--checkpoint", "7")
    assert "There is no run folder poin. Nearest: point" in fails(capsys, "export", "poin", *own)
    main(["fit", "own.py:line"])
    capsys.readouterr()
    assert "expected one with a policy (PPOTask)" in fails(
        capsys, "export", "line", "--experiment", "own.py:line", "--output", "p.onnx"
    )
    assert not Path("p.onnx").exists()
