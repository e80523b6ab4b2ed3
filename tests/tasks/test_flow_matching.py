"""Flow matching over trajectories beside plain arithmetic, on a pendulum in pure JAX."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from pictures import blank_part, drawn, words
from scipy.spatial.transform import Rotation

import galvanax as gx
from galvanax.errors import ConfigError
from galvanax.experiments.dynaflow import write_two_way_pendulum
from galvanax.networks.flow_model import TrajectoryFlow
from galvanax.physics.frames import from_start_frame, to_start_frame
from galvanax.physics.layout import StateLayout
from galvanax.physics.models import load_model
from galvanax.physics.pendulum import PendulumSystem
from galvanax.tasks.dynaflow import squash
from galvanax.tasks.flow_metrics import Modes, statewise_admissibility_error

HORIZON = 16
SMALL = {"d_model": 16, "num_heads": 2, "depth": 1, "dropout": 0.0}


@pytest.fixture(scope="module")
def motions(tmp_path_factory):
    path = tmp_path_factory.mktemp("motions") / "pendulum.npz"
    write_two_way_pendulum(path, num_trajectories=200)
    return path


@pytest.fixture(scope="module")
def data(motions):
    data = gx.MotionDataModule(str(motions), horizon=HORIZON, batch_size=32)
    data.setup()
    return data


@pytest.fixture(scope="module")
def fitted(data):
    task = gx.DynaFlowTask(system="pendulum", learning_rate=3e-3, **SMALL)
    return gx.Trainer(max_epochs=20, callbacks=[gx.EMA(0.9)]).fit(task, data)


def prepared(task, data):
    task = task.setup(data)
    from flax import nnx

    model = task.build_model(nnx.Rngs(0))
    task.set_statistics(model, data)
    return task, model


def swing(states, actions, dt=0.1, substeps=2):
    """`PendulumSystem` in plain numpy: m = l = 1, g = 9.81, damping 0.1, 10 N·m; classical Runge-Kutta."""
    rows, state = [states], states.astype(np.float64)
    for action in np.moveaxis(actions, 1, 0):
        torque = 10.0 * np.clip(action[:, 0], -1, 1)

        def rate(x, torque=torque):
            return np.stack([x[:, 1], torque - 0.1 * x[:, 1] - 9.81 * np.sin(x[:, 0])], axis=-1)

        h = dt / substeps
        for _ in range(substeps):
            k1 = rate(state)
            k2 = rate(state + h / 2 * k1)
            k3 = rate(state + h / 2 * k2)
            k4 = rate(state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        rows.append(state)
    return np.stack(rows, axis=1)


class Recorder:
    """Stands where the network stands: keeps what it is shown and answers what it is told to."""

    def __init__(self, model, answer):
        self.states, self.conditions, self.change_std = model.states, model.conditions, model.change_std
        self.answer, self.seen = answer, []

    def __call__(self, noisy, time, condition=None, mask=None, *, rng=None):
        self.seen.append((noisy, time, condition, mask, rng))
        return self.answer(noisy, time, condition, mask)


@pytest.mark.parametrize("units", ["deviations", "natural"])
def test_the_loss_is_the_weighted_error_of_where_the_actions_lead(data, units):
    """A fresh network says 0: the pendulum swings on its own, whatever the noise."""
    task, model = prepared(gx.DynaFlowTask(system="pendulum", loss_units=units, **SMALL), data)
    assert gx.DynaFlowTask().loss_units == "deviations"
    batch = data.train_dataset(0)[0]
    loss, metrics = task.loss(model, batch, jax.random.key(3))
    true = batch["states"].astype(np.float64)
    found = swing(true[:, 0], np.zeros((len(true), HORIZON, 1)))
    everything = np.concatenate([b["states"] for b in data.train_dataset(0)]).reshape(-1, 2).astype(np.float64)
    scale = everything.std(0) if units == "deviations" else 1.0
    scaled = ((found - true) / scale)[:, 1:] ** 2
    np.testing.assert_allclose(loss, scaled.mean(), rtol=2e-4)
    np.testing.assert_allclose(np.mean(metrics["position_mse"]), scaled[..., 0].mean(), rtol=2e-4)
    np.testing.assert_allclose(np.mean(metrics["velocity_mse"]), scaled[..., 1].mean(), rtol=2e-4)


def test_training_and_sampling_have_one_noise(data):
    task, model = prepared(gx.StateFlowTask(system="pendulum", **SMALL), data)
    batch = {"states": np.concatenate([data.train_dataset(0)[i]["states"] for i in range(4)])}
    truth = np.asarray(model.states.normalize(batch["states"]))
    watch = Recorder(model, lambda noisy, *_: jnp.zeros_like(noisy))
    task.loss(watch, batch, jax.random.key(0))
    noisy, time, *_ = (np.asarray(part) for part in watch.seen[0][:2])
    assert noisy.shape == truth.shape
    assert 0 <= time.min() < 0.05
    assert 0.95 < time.max() < 1
    np.testing.assert_array_equal(noisy[:, 0], truth[:, 0])
    share = time[:, None, None]
    noise = ((noisy - share * truth) / (1 - share))[time < 0.9, 1:]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05

    watch = Recorder(model, lambda noisy, *_: jnp.zeros_like(noisy))
    with jax.disable_jit():
        task.sample(watch, batch["states"][:, 0], None, jax.random.key(1), ode_steps=1)
        task.sample(watch, batch["states"][:7, 0], None, jax.random.key(1), ode_steps=1)
    first, time, *_ = watch.seen[0]
    np.testing.assert_array_equal(time, 0)
    np.testing.assert_allclose(first[:, 0], truth[:, 0], atol=1e-6)
    assert abs(np.std(first[:, 1:]) - 1) < 0.05
    # Each example has noise of its own, which does not depend on who is beside it.
    assert np.abs(first[0, 1:] - first[1, 1:]).max() > 0.1
    np.testing.assert_array_equal(watch.seen[1][0], first[:7])


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_flow_ends_where_the_network_says(data, method, steps):
    task, model = prepared(gx.StateFlowTask(system="pendulum", ode_method=method, **SMALL), data)
    start = data.train_dataset(0)[0]["states"][:5, 0]
    goal = jax.random.normal(jax.random.key(5), (5, HORIZON + 1, 2))
    watch = Recorder(model, lambda noisy, *_: goal - noisy)
    samples = task.sample(watch, start, None, jax.random.key(0), ode_steps=steps)
    np.testing.assert_allclose(samples.states[:, 1:], model.states.denormalize(goal)[:, 1:], atol=1e-5)
    np.testing.assert_array_equal(samples.states[:, 0], start)
    assert samples.actions is None


def test_euler_and_heun_follow_a_known_ode(data):
    """X̂₁ = X_t / 2: dX/dt = -X / (2 (1 - t)), whose solution is X₀ √(1 - t). Heun's error is of second order."""
    errors = {}
    for method in ("euler", "heun"):
        for steps in (8, 16):
            task, model = prepared(gx.StateFlowTask(system="pendulum", ode_method=method, **SMALL), data)
            watch = Recorder(model, lambda noisy, *_: -0.5 * noisy)
            with jax.disable_jit():
                task.sample(watch, jnp.zeros((1, 2)), None, jax.random.key(0), ode_steps=steps)
            at = {float(time[0]): np.asarray(noisy)[0, 1:] for noisy, time, *_ in reversed(watch.seen)}
            assert max(at) == pytest.approx(1 - 1 / steps)
            errors[method, steps] = np.abs(at[0.5] / at[0.0] - np.sqrt(0.5)).max()
    assert errors["euler", 8] < 0.02
    assert errors["euler", 8] / errors["euler", 16] == pytest.approx(2, rel=0.1)
    assert errors["heun", 8] / errors["heun", 16] == pytest.approx(4, rel=0.15)


@pytest.mark.slow
def test_guidance_stretches_the_answer_from_without_to_with_the_condition(data, motions, tmp_path):
    arrays = dict(np.load(motions))
    side = np.sign(arrays["states"][:, -1:, 0])
    np.savez(tmp_path / "sided.npz", states=arrays["states"], dt=arrays["dt"], conditionings=side)
    sided = gx.MotionDataModule(str(tmp_path / "sided.npz"), horizon=HORIZON, batch_size=32)
    sided.setup()
    task, model = prepared(gx.DynaFlowTask(system="pendulum", condition_dropout=0.25, **SMALL), sided)
    assert task.condition_dim == 1

    def answer(noisy, time, condition, mask):
        return jnp.broadcast_to((0.2 + 0.1 * mask * condition[:, 0])[:, None, None], (*noisy.shape[:2], 1))

    start, condition = jnp.zeros((2, 2)), jnp.array([[1.0], [-1.0]])
    for guidance, expected in ((0.0, [0.2, 0.2]), (1.0, [0.3, 0.1]), (3.0, [0.5, -0.1])):
        samples = task.sample(
            Recorder(model, answer), start, condition, jax.random.key(0), ode_steps=2, guidance=guidance
        )
        wanted = np.broadcast_to(np.tanh(expected)[:, None, None], (2, HORIZON, 1))
        np.testing.assert_allclose(samples.actions, wanted, atol=1e-6)
    # In training a quarter of the conditions is hidden, in evaluation none.
    batch = {
        name: np.concatenate([sided.train_dataset(0)[i][name] for i in range(5)]) for name in ("states", "condition")
    }
    watch = Recorder(model, answer)
    task.loss(watch, batch, jax.random.key(0))
    assert 0.15 < np.mean(np.asarray(watch.seen[0][3]) == 0) < 0.35
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    with jax.disable_jit():
        task.evaluate(watch, one, jax.random.key(0))
    np.testing.assert_array_equal(watch.seen[1][3], 1)


def test_dropout_is_active_in_training_alone(data):
    task, model = prepared(gx.DynaFlowTask(system="pendulum", **{**SMALL, "dropout": 0.5}), data)
    watch = Recorder(model, lambda noisy, *_: jnp.zeros((*noisy.shape[:2], 1)))
    batch = data.train_dataset(0)[0]
    task.loss(watch, batch, jax.random.key(0))
    assert len(np.unique(jax.random.key_data(watch.seen[0][4])[:, 0])) == 32, "a key for each example"
    watch.seen.clear()
    task.evaluate(watch, jax.tree.map(lambda leaf: leaf[:1], batch), jax.random.key(0))
    task.sample(watch, batch["states"][:, 0], None, jax.random.key(0))
    assert all(rng is None for *_, rng in watch.seen)


def test_actions_of_a_sample_lead_through_its_states(fitted, data):
    task, model = fitted.task, fitted.model
    start = data.test_dataset()[0]["states"][:, 0]
    for ode_steps in (1, 4):
        samples = task.sampler(model, ode_steps=ode_steps)(start, None, jax.random.key(0))
        again = np.asarray(gx.physics.rollout(task.physics, start, samples.actions))
        np.testing.assert_array_equal(samples.states, again)
        np.testing.assert_allclose(samples.states, swing(start, np.asarray(samples.actions)), atol=2e-5)
    assert np.abs(np.asarray(samples.actions)).max() < 1


def test_it_learns(fitted):
    assert fitted.metrics["val/loss"] < 0.5
    assert fitted.metrics["val/min_tre"] < fitted.metrics["val/tre"]


def test_the_report_judges_both_kinds(fitted, data, tmp_path):
    comparator = gx.Trainer(max_epochs=2).fit(gx.StateFlowTask(system="pendulum", **SMALL), data)
    task = dataclasses.replace(fitted.task, ode_steps=4, num_samples=4)
    beside = {"states": (dataclasses.replace(comparator.task, ode_steps=4, num_samples=4), comparator.model)}
    figures = task.report(fitted.model, data, tmp_path, num_examples=10, beside=beside)
    json.dumps(figures)
    assert figures["replay_error"] < 1e-5
    assert figures["demonstration_sae"] < 1e-5
    assert figures["sae"] < 1e-5
    assert figures["beside/states"]["sae"] > 100 * figures["sae"]
    assert "replay_error" not in figures["beside/states"]
    assert sum(figures["mode_shares"]) + figures["between_modes"] == pytest.approx(1)
    assert figures["min_tre"] <= figures["tre"]
    np.testing.assert_allclose(figures["demonstration_mode_shares"], 0.5, atol=0.15)
    assert all(figures[f"seconds/{n}_ode_steps/batch_{b}"] > 0 for n in (1, 4) for b in (1, 32))
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_the_picture_of_samples_says_what_it_shows(fitted, data, tmp_path):
    task = dataclasses.replace(fitted.task, ode_steps=1, num_samples=2)
    with drawn() as figures:
        shares = task.report(fitted.model, data, tmp_path, num_examples=6)["mode_shares"]
    figure = figures["samples.png"]
    angle, velocity, modes = figure.axes
    assert (angle.get_title(), angle.get_ylabel(), angle.get_xlabel()) == ("angle", "rad", "time (s)")
    assert (velocity.get_title(), velocity.get_ylabel()) == ("angular velocity", "rad/s")
    assert angle.get_lines()[0].get_xdata()[-1] == pytest.approx(task.horizon * task.dt)
    assert all((modes.get_title(), modes.get_ylabel(), modes.get_xlabel()))
    assert [label.get_text() for label in modes.get_xticklabels()] == ["0", "1", "between"]
    samples = {"samples, mode 0": "tab:blue", "samples, mode 1": "tab:orange"}
    assert words(figure)[:3] == ["demonstrations", *samples]
    # A mode has one colour in the whole picture, which the legend names.
    bars = [bar for bar in modes.patches if bar.get_facecolor() in [to_rgba(color) for color in samples.values()]]
    assert [bar.get_height() for bar in bars] == pytest.approx(shares)
    assert blank_part(tmp_path / "samples.png") < 0.15


def test_admissibility_is_the_distance_to_what_some_action_reaches():
    system = PendulumSystem(control_dt=0.1)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 2)).astype(np.float32)
    states = np.asarray(gx.physics.rollout(system, start, rng.uniform(-1, 1, (3, 4, 1)).astype(np.float32)))
    assert statewise_admissibility_error(system, states).max() < 1e-5
    broken = states + rng.normal(size=states.shape).astype(np.float32) * 0.05
    found = statewise_admissibility_error(system, broken)
    grid = np.linspace(-1, 1, 4001)
    for row, value in zip(broken, found, strict=True):
        best = [
            np.linalg.norm(swing(np.repeat(a[None], 4001, 0), grid[:, None, None])[:, 1] - b, axis=1).min()
            for a, b in itertools.pairwise(row)
        ]
        np.testing.assert_allclose(value, np.mean(best), rtol=1e-2)


@pytest.mark.parametrize(("start", "direction"), [(0.5, -1), (-2.5, 1)])
def test_admissibility_looks_where_the_steps_beside_it_were_found(start, direction):
    """On one side of 0 an action must be over 1 to do anything: from no action at all, no slope shows the way."""

    class Dead:
        state_dim, action_dim, control_dt = 2, 1, 0.1

        def step(self, state, action):
            push = jnp.where(state[0] > 0, action[0], jnp.maximum(action[0] - 1, 0))
            return jnp.stack([state[0] + direction, push])

    actions = np.float32([[1.5], [1.6], [1.4], [1.7]])
    states = np.asarray(gx.physics.rollout(Dead(), jnp.array([start, 0.0]), jnp.asarray(actions)))[None]
    pushes = np.where(states[0, :-1, 0] > 0, 0, actions[:, 0] - 1)  # what no action would miss
    np.testing.assert_allclose(statewise_admissibility_error(Dead(), states, starts=1), pushes.mean(), rtol=1e-5)
    np.testing.assert_allclose(statewise_admissibility_error(Dead(), states), 0, atol=1e-5)
    np.testing.assert_allclose(statewise_admissibility_error(Dead(), states, actions[None], starts=1), 0, atol=1e-5)


def test_modes_and_what_lies_between_them():
    rng = np.random.default_rng(1)
    side = np.repeat([1.0, -1.0], [70, 30])
    motions = side[:, None, None] * np.linspace(0, 2, 8)[None, :, None] + 0.05 * rng.normal(size=(100, 8, 2))
    modes = Modes.of(motions, 2)
    assert sorted(modes.shares()) == [0.3, 0.7]
    labels = modes.assign(np.concatenate([motions[:3], motions[-3:], np.zeros((2, 8, 2)), -3 * motions[:1]]))
    assert labels[0] == labels[1] == labels[2] != labels[3] == labels[4] == labels[5] >= 0
    assert labels[6:].tolist() == [-1, -1, -1]


def test_physics_does_not_notice_place_and_heading():
    """A Go2 in C MuJoCo, once here and once elsewhere, turned: seen from their starts, the motions are the same."""
    model = load_model("go2")
    layout = StateLayout.from_model(model)
    rng = np.random.default_rng(2)
    data = mujoco.MjData(model)
    qpos = model.qpos0.copy()
    qpos[2], qpos[3:7] = 0.35, Rotation.from_euler("xyz", [0.1, -0.2, 0.3]).as_quat(scalar_first=True)
    qvel = rng.normal(size=model.nv)

    def run(qpos, qvel):
        data.qpos[:], data.qvel[:], data.qacc_warmstart[:] = qpos, qvel, 0
        rows = []
        for _ in range(40):
            rows.append(np.concatenate([data.qpos, data.qvel]))
            mujoco.mj_step(model, data)
        return np.stack(rows)

    turn = Rotation.from_euler("z", 2.0)
    moved, spun = qpos.copy(), qvel.copy()
    moved[:3] = turn.apply(qpos[:3]) + np.array([3.0, -1.0, 0.0])
    moved[3:7] = -(turn * Rotation.from_quat(qpos[3:7], scalar_first=True)).as_quat(scalar_first=True)
    spun[:3] = turn.apply(qvel[:3])
    here, there = run(qpos, qvel), run(moved, spun)
    single = [rows.astype(np.float32) for rows in (here, there)]
    seen = [np.asarray(to_start_frame(layout, jnp.asarray(rows), jnp.asarray(rows[0]))) for rows in single]
    np.testing.assert_allclose(seen[0], seen[1], atol=2e-4)
    np.testing.assert_allclose(seen[0][0, :2], 0, atol=1e-6)
    forward = Rotation.from_quat(seen[0][0, 3:7], scalar_first=True).apply([1.0, 0, 0])
    np.testing.assert_allclose(forward[1], 0, atol=1e-6)
    assert forward[0] > 0
    back = np.array(from_start_frame(layout, jnp.asarray(seen[1]), jnp.asarray(there[0], jnp.float32)))
    back[:, 3:7] *= np.sign(np.sum(back[:, 3:7] * there[:, 3:7], axis=1, keepdims=True))
    np.testing.assert_allclose(back, there, atol=2e-4)


PUCK = """<mujoco model="puck"><option timestep="0.005"/><worldbody><geom type="plane" size="9 9 1"/>
  <body pos="0 0 0.1"><freejoint/><geom type="box" size="0.2 0.1 0.1" mass="1"/>
    <body pos="0 0 0.2"><joint name="arm" axis="0 0 1" damping="0.02"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.3" contype="0" conaffinity="0"/></body></body>
</worldbody><actuator><motor joint="arm" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize("kind", [gx.DynaFlowTask, pytest.param(gx.StateFlowTask, marks=pytest.mark.slow)])
def test_samples_are_where_their_actions_lead_on_the_ground(tmp_path, kind):
    """A box that slides on friction pyramids, whose sides lie along the world's axes: physics does know directions."""
    (tmp_path / "puck.xml").write_text(PUCK)
    model = mujoco.MjModel.from_xml_string(PUCK)
    data, rng, episodes = mujoco.MjData(model), np.random.default_rng(0), []
    for _ in range(8):
        mujoco.mj_resetData(model, data)
        data.qpos[3:7] = Rotation.from_euler("z", rng.uniform(-3, 3)).as_quat(scalar_first=True)
        data.qvel[:2] = rng.normal(size=2)
        rows = []
        for _ in range(20):
            rows.append(np.concatenate([data.qpos, data.qvel]))
            mujoco.mj_step(model, data, 4)
        episodes.append(rows)
    np.savez(tmp_path / "puck.npz", states=np.array(episodes, np.float32), dt=0.02)
    motions = gx.MotionDataModule(
        str(tmp_path / "puck.npz"), horizon=6, batch_size=16, system=str(tmp_path / "puck.xml"), val_ratio=0.25
    )
    task, network = prepared(kind(system=str(tmp_path / "puck.xml"), **SMALL), motions)
    start = motions.val_dataset()[0]["states"][:, 0]
    samples = task.sampler(network, ode_steps=2)(start, None, jax.random.key(0))
    np.testing.assert_array_equal(samples.states[:, 0], start)
    if samples.actions is None:  # a fresh network says that the noisy states are true: it stays near, in the world
        assert np.abs(np.asarray(samples.states)[:, :, :2] - start[:, None, :2]).max() < 3
        return
    again = np.asarray(gx.physics.rollout(task.physics, start, samples.actions))
    slid = np.abs(again[:, -1, :2] - start[:, :2]).max()
    assert slid > 0.05
    np.testing.assert_allclose(samples.states, again, atol=2e-5)


def test_squash_keeps_limits_and_gradients():
    low, high = np.float32([-1, -np.inf, -0.5]), np.float32([2, np.inf, 0.25])
    values = jnp.linspace(-50, 50, 1001)[:, None] * jnp.ones(3)
    squashed = np.asarray(squash(values, low, high))
    assert squashed.min(0).tolist() == pytest.approx([-1, -50, -0.5])
    assert squashed.max(0).tolist() == pytest.approx([2, 50, 0.25])
    slope = jax.vmap(jax.jacfwd(lambda row: squash(row, low, high)))(jnp.array([[0.0, 0, 0], [1.5, 9, -0.4]]))
    np.testing.assert_allclose(slope[0], np.eye(3), atol=1e-6)
    assert (np.diagonal(slope[1]) > 0.1).all()


def test_weights_follow_the_joints_names():
    task = gx.DynaFlowTask(system="go2", joint_weights={"calf": 3.0, "FL_": 2.0}, dt=0.02, state_dim=37)
    model = load_model("go2")
    expected = np.ones((2, model.nv), np.float32)
    for joint in range(1, model.njnt):
        name, dof = model.joint(joint).name, model.jnt_dofadr[joint]
        expected[:, dof] = 2.0 if "FL_" in name else 3.0 if "calf" in name else 1.0
    np.testing.assert_array_equal(task.weights, expected.ravel())
    for joints, message in (({"claf": 1.0}, "'claf'.*calf"), ({"knee": 1.0}, "'knee'")):
        with pytest.raises(ConfigError, match=message):
            _ = dataclasses.replace(task, joint_weights=joints).weights
    with pytest.raises(ConfigError, match="no named joints"):
        _ = gx.DynaFlowTask(joint_weights={"hinge": 2.0}, dt=0.1, state_dim=2).weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ode_method": "rk4"}, "ode_method='rk4'.*euler, heun"),
        ({"ode_steps": 0}, "ode_steps=0.*at least 1"),
        ({"system": "cart-pole"}, "states have 2 entries.*'cart-pole' have 4"),
        ({"system": "pendulun"}, "pendulun.*pendulum"),
        ({"d_model": 0}, "d_model=0"),
    ],
)
def test_settings_that_cannot_be(data, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(gx.DynaFlowTask(system="pendulum", **SMALL), **changes).setup(data)


def test_other_data_is_refused():
    arrays = gx.ArrayDataModule(train={"x": np.zeros((4, 2))}, batch_size=2)
    with pytest.raises(ConfigError, match="Use MotionDataModule"):
        gx.DynaFlowTask().setup(arrays)


def test_the_model_is_the_tasks_alone(fitted):
    assert isinstance(fitted.model, TrajectoryFlow)
