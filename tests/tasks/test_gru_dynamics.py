"""A recurrent model from logs to planners: on a pendulum on a cart-less pivot, integrated plainly in numpy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import galvanax as gx
from galvanax.networks.gru_dynamics import GRUDynamicsModel, GRUEnsemble
from galvanax.physics import StateLayout
from galvanax.physics.error_growth import error_growth, linear_extrapolation, persistence

DT = 0.05
LAYOUT = StateLayout(2, 2, angles=(1,))  # a sliding mass and a pendulum
BALL = StateLayout(4, 3, angles=(), quaternions=((0, 0),))


def trajectory(seed, length=60, noise=0.0):
    """x'' = u, θ'' = -9 sin θ + u, by semi-implicit Euler."""
    rng = np.random.default_rng(seed)
    state = np.array([rng.uniform(-5, 5), rng.uniform(-3, 3), rng.normal(), rng.normal()])
    states, actions = [], np.repeat(rng.uniform(-1, 1, (length // 5, 1)), 5, axis=0)
    for (u,) in actions:
        states.append(state.copy())
        state[2:] += DT * np.array([u, -9 * np.sin(state[1]) + u]) + noise * rng.normal(size=2)
        state[:2] += DT * state[2:]
    return np.array(states, np.float32), actions.astype(np.float32)


def write_logs(folder, count, noise=0.0):
    for index in range(count):
        states, actions = trajectory(index, noise=noise)
        time = np.arange(len(states)) * DT
        np.savez(folder / f"{index:03d}.npz", timestamp=time, qpos=states[:, :2], qvel=states[:, 2:], ctrl=actions)
    return gx.TrajectoryDataModule(str(folder), angles=(1,), history=6, horizon=5, cache=False)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run folder, its data and its result; three members."""
    data = write_logs(tmp_path_factory.mktemp("logs"), 40)
    run_dir = tmp_path_factory.mktemp("runs") / "gru"
    trainer = gx.Trainer(
        max_epochs=6,
        run_dir=run_dir,
        callbacks=[gx.GradientClipping(1.0), gx.EMA(0.98), gx.Checkpoint(monitor="val/loss", mode="min")],
    )
    result = trainer.fit(gx.GRUDynamicsTask(hidden_size=32, learning_rate=5e-3, members=3), data)
    return run_dir, data, result


def window(count=4):
    pairs = [trajectory(100 + index, length=30) for index in range(count)]
    return np.stack([s for s, _ in pairs]), np.stack([a for _, a in pairs])


@pytest.mark.parametrize("layout", [LAYOUT, BALL])
def test_zero_output_is_no_change(layout):
    model = GRUDynamicsModel(layout, 1, 8, rngs=nnx.Rngs(0))
    states = np.random.default_rng(0).normal(size=(5, 6, layout.state_dim)).astype(np.float32)
    if layout.quaternions:
        states[..., :4] /= np.linalg.norm(states[..., :4], axis=-1, keepdims=True)
    history = model.encode(jnp.asarray(states), jnp.ones((5, 6, 1)))
    _, prediction = model.step(history, jnp.ones((5, 1)))
    np.testing.assert_allclose(prediction.state, states[:, -1], atol=1e-6)


def test_the_update_is_trigonometric_addition():
    model = GRUDynamicsModel(LAYOUT, 1, 8, rngs=nnx.Rngs(0))
    state = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    outputs = np.array([0.1, 0.3, 0.5, -0.5, -0.2], np.float32)  # x, sine of θ's turn, two velocities, its cosine - 1
    found, _ = model._apply(jnp.asarray(state), jnp.asarray(outputs))
    cosine = np.cos(2.0) * (1 - 0.2) - np.sin(2.0) * 0.3
    sine = np.sin(2.0) * (1 - 0.2) + np.cos(2.0) * 0.3
    assert found[0] == pytest.approx(1.1)
    assert np.arctan2(np.sin(found[1]), np.cos(found[1])) == pytest.approx(np.arctan2(sine, cosine), rel=1e-5)
    np.testing.assert_allclose(found[2:], [3.5, 3.5])


def test_coordinates_are_relative_unless_said():
    for absolute in (False, True):
        model = GRUDynamicsModel(LAYOUT, 1, 8, absolute=absolute, rngs=nnx.Rngs(0))
        last = model.head.layers[-1].kernel
        last[...] = jax.random.normal(jax.random.key(0), last.shape)
        states, actions = window()
        moved = states + np.array([50.0, 2 * np.pi, 0, 0], np.float32)
        changes = []
        for s in (states, moved):
            history = model.encode(jnp.asarray(s[:, :6]), jnp.asarray(actions[:, :6]))
            changes.append(model.step(history, jnp.asarray(actions[:, 5]))[1].state - s[:, 5])
        same = np.allclose(changes[0], changes[1], atol=1e-3)
        assert same is not absolute


CART = StateLayout(3, 3, angles=(2,))  # a mass on two rails, and a pendulum


@pytest.mark.parametrize(
    ("indices", "absolute", "noticed"),
    [
        (None, False, ()),
        ((0,), False, (1,)),
        ((0,), True, (0, 1)),
        ((), False, (0, 1)),
    ],
)
def test_coordinates_by_index(indices, absolute, noticed):
    """A whole motion that lies elsewhere is the same to the network where coordinates are relative, else another."""
    task = gx.GRUDynamicsTask(
        coordinate_indices=indices, absolute_coordinates=absolute, hidden_size=8,
        layout=CART, action_dim=1, history=6, horizon=5,
    )  # fmt: skip
    model = task.build_model(nnx.Rngs(0))
    last = model.members.head.layers[-1].kernel
    last[...] = jax.random.normal(jax.random.key(0), last.shape)
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(6, 6)).astype(np.float32), rng.normal(size=(6, 1)).astype(np.float32)

    @jax.jit
    def change(states):
        dynamics = gx.GRUDynamics(task, model)
        history = dynamics.init_history(states, jnp.broadcast_to(actions, (3, 6, 1)))
        return dynamics.step(history, jnp.broadcast_to(actions[-1], (3, 1)))[1] - states[:, -1]

    moved = np.zeros((3, 1, 6), np.float32)
    moved[1, :, 0] = moved[2, :, 1] = 3
    here, *elsewhere = np.asarray(change(states + moved))
    found = tuple(place for place in (0, 1) if np.abs(elsewhere[place] - here).max() > 1e-2)
    assert found == noticed


def test_statistics_of_coordinates_by_index():
    """What is relative has no mean to subtract; what is not is z-scored."""
    model = GRUDynamicsModel(CART, 1, 8, relative=(1,), absolute=True, rngs=nnx.Rngs(0))
    mean, std = np.arange(1.0, 7), np.arange(2.0, 8)
    model.set_statistics((mean, std), (np.zeros(1), np.ones(1)), (np.zeros(6), np.ones(6)))
    # Two coordinates, cosine and sine of an angle, three velocities.
    np.testing.assert_allclose(model.features.mean[...], [1, 0, 0, 0, 4, 5, 6])
    np.testing.assert_allclose(model.features.std[...], [2, 3, 1, 1, 5, 6, 7])
    np.testing.assert_allclose(model.positions.mean[...], [2])


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ((0, 1), r"coordinate_indices=\(0, 1\): \[1\] are no plain .* are \(0,\); angles: \(1,\); rotations: none"),
        ((5,), r"coordinate_indices=\(5,\): \[5\] are no plain coordinates of qpos. Of 2 places"),
        ((0, 0), r"coordinate_indices=\(0, 0\): a place is named twice"),
    ],
)
def test_coordinates_that_are_none(fitted, indices, said):
    with pytest.raises(gx.ConfigError, match=said):
        gx.Trainer(max_steps=1).fit(gx.GRUDynamicsTask(coordinate_indices=indices), fitted[1])


def wrapped(angles):
    return (angles + np.pi) % (2 * np.pi) - np.pi


def test_the_loss_is_numpys():
    forms = [
        ("states", "deviations", "relative"),
        ("states", "natural", "uniform"),
        ("changes", "deviations", "relative"),
        ("changes", "natural", "uniform"),
    ]
    sizes = {"members": 2, "hidden_size": 8, "layout": LAYOUT, "action_dim": 1, "history": 6, "horizon": 5}
    tasks = [
        gx.GRUDynamicsTask(loss_of=of, loss_units=units, loss_weights=weights, **sizes) for of, units, weights in forms
    ]
    assert gx.GRUDynamicsTask(**sizes) == tasks[0]
    model = tasks[0].build_model(nnx.Rngs(0))
    kernel = model.members.head.layers[-1].kernel
    kernel[...] = 3 * jax.random.normal(jax.random.key(0), kernel.shape)
    scale, ones = np.array([0.1, 0.2, 0.4, 0.5]), np.ones(4)
    model.set_statistics((0 * ones, ones), (np.zeros(1), np.ones(1)), (0 * ones, scale))
    states, actions = (array[:, :11] for array in window())
    states[..., 1] = wrapped(states[..., 1])

    @jax.jit
    def everything(batch):
        return tasks[0].unroll(model, batch).state, [task.loss(model, batch, jax.random.key(0))[0] for task in tasks]

    found, losses = everything({"states": jnp.asarray(states), "actions": jnp.asarray(actions)})
    found = np.asarray(found, np.float64)
    for (of, units, weights), loss in zip(forms, losses, strict=True):
        squares = []
        for member, row, h in np.ndindex(2, 4, 5):
            true, before = states[row, 6 + h].astype(float), states[row, 5 + h].astype(float)
            predicted, own = found[member, row, h], found[member, row, h - 1] if h else before
            error = predicted - true if of == "states" else (predicted - own) - (true - before)
            error[1] = wrapped(error[1])
            if units == "deviations":
                error = error / scale
            if weights == "relative":
                error = error / (h + 1)
            squares.append(error**2)
        assert float(loss) == pytest.approx(np.mean(squares), rel=1e-4), (of, units, weights)


def test_gaussian_and_a_loss_that_it_does_not_use(fitted):
    with pytest.raises(gx.ConfigError, match=r"gaussian=True fits by likelihood.*loss_units='natural'"):
        gx.Trainer(max_steps=1).fit(gx.GRUDynamicsTask(gaussian=True, loss_units="natural"), fitted[1])
    with pytest.raises(gx.ConfigError, match="loss_weights='even': expected one of relative, uniform"):
        gx.Trainer(max_steps=1).fit(gx.GRUDynamicsTask(loss_weights="even"), fitted[1])


def test_dropout_is_of_training_and_of_each_row_by_itself():
    states, actions = (jnp.asarray(array[:, :11]) for array in window())
    batch = {"states": states, "actions": actions}
    plain = gx.GRUDynamicsTask(hidden_size=64, layout=LAYOUT, action_dim=1, history=6, horizon=5)
    task = dataclasses.replace(plain, dropout=0.4)
    model = task.build_model(nnx.Rngs(0))
    kernel = model.members.head.layers[-1].kernel
    kernel[...] = jax.random.normal(jax.random.key(0), kernel.shape)
    errors = jax.jit(lambda batch, key: task.loss(model, batch, key)[1]["change_mse"])
    first, again, other = (np.asarray(errors(batch, jax.random.key(key))) for key in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-3).all()
    alone = errors(jax.tree.map(lambda leaf: leaf[:1], batch), jax.random.key(0))
    np.testing.assert_allclose(alone, first[:1], rtol=1e-4)
    # Rows that are alike are dropped from differently.
    alike = errors(jax.tree.map(lambda leaf: leaf[jnp.zeros(4, int)], batch), jax.random.key(0))
    assert len(set(np.asarray(alike).round(5))) == 4
    # Evaluation drops nothing.
    judged = [float(one.evaluate(model, batch, jax.random.key(key))["loss"]) for one in (plain, task) for key in (0, 1)]
    assert judged == pytest.approx([judged[0]] * 4)
    # As much is dropped as was said, and what stays makes up for it.
    keep = np.asarray(task._keep(4, jax.random.key(0)))
    assert keep.shape == (4, 1, 64)
    np.testing.assert_allclose(np.unique(keep), [0, 1 / 0.6], rtol=1e-6)
    assert np.mean(keep == 0) == pytest.approx(0.4, abs=0.1)


def test_it_learns_and_beats_simple_predictors(fitted):
    _, data, result = fitted
    states = np.stack([t.states[:40] for t in data.trajectories("test")])
    actions = np.stack([t.actions[:40] for t in data.trajectories("test")])
    dynamics = gx.GRUDynamics(result.task, result.model)
    history = dynamics.init_history(states[:, :6], actions[:, :6])
    predicted = dynamics.rollout(history, jnp.asarray(actions[:, 5:10]))
    scale = np.ones(2)
    errors = {
        name: error_growth(LAYOUT, np.asarray(values), states[:, 6:11], scale).mse["all"]
        for name, values in {
            "model": predicted,
            "persistence": persistence(states[:, :6], 5),
            "linear": linear_extrapolation(LAYOUT, states[:, :6], 5),
        }.items()
    }
    assert (errors["model"] < 0.2 * errors["persistence"]).all()
    assert errors["model"][-1] < errors["linear"][-1]


def test_loading_needs_no_data_and_keeps_the_statistics(fitted):
    run_dir, data, result = fitted
    dynamics = gx.GRUDynamics.load(run_dir, "last")
    states, actions = window()
    for one in (dynamics, gx.GRUDynamics(result.task, result.model)):
        history = one.init_history(states[:, :6], actions[:, :6])
        found = one.rollout(history, jnp.asarray(actions[:, 5:15]))
        expected = found if one is dynamics else expected  # noqa: F821
        np.testing.assert_array_equal(found, expected)
    std = dynamics.model.members.features.std[...]
    rows = np.concatenate([t.states for t in data.trajectories("train")]).astype(np.float64)
    np.testing.assert_allclose(std[0], [rows[:, 0].std(), 1, 1, rows[:, 2].std(), rows[:, 3].std()], rtol=1e-5)
    assert dynamics.dt == pytest.approx(DT)


def test_step_rollout_vmap_and_gradients_agree(fitted):
    dynamics = gx.GRUDynamics.load(fitted[0])
    states, actions = window()
    history = dynamics.init_history(states[:, :6], actions[:, :6])
    future = jnp.asarray(actions[:, 5:12])
    rolled = jax.jit(dynamics.rollout)(history, future)
    stepped, now = [], history
    step = jax.jit(dynamics.step)
    for index in range(future.shape[1]):
        now, state = step(now, future[:, index])
        stepped.append(state)
    np.testing.assert_allclose(rolled, np.stack(stepped, 1), atol=1e-5)
    np.testing.assert_allclose(jax.vmap(dynamics.rollout)(history, future), rolled, atol=1e-5)
    single = dynamics.init_history(states[0, :6], actions[0, :5])  # the action to come may be left out
    np.testing.assert_allclose(dynamics.rollout(single, future[0]), rolled[0], atol=1e-5)

    @jax.jit
    def last(action):
        return dynamics.rollout(history, future.at[0, 0, 0].set(action))[0, -1].sum()

    slope = float(jax.grad(last)(0.3))
    assert slope == pytest.approx(float(last(0.32) - last(0.28)) / 0.04, rel=0.1)


def test_propagation_by_member_and_by_moment(fitted):
    states, actions = window()
    runs = {name: gx.GRUDynamics.load(fitted[0], propagation=name) for name in ("member", "moment")}
    first = {}
    for name, dynamics in runs.items():
        history = dynamics.init_history(states[:, :6], actions[:, :6])
        first[name] = dynamics.step_with_variance(history, jnp.asarray(actions[:, 5]))[1:]
    members, _ = first["member"]
    assert members.shape == (3, 4, 4)
    assert np.ptp(np.asarray(members), axis=0).max() > 1e-4
    mean, variance = first["moment"]
    np.testing.assert_allclose(mean, members.mean(0), atol=1e-5)
    apart = np.asarray(LAYOUT.difference(members, jnp.broadcast_to(members[:1], members.shape)))
    np.testing.assert_allclose(variance, apart.var(0), atol=1e-6)
    with pytest.raises(gx.ConfigError, match=r'propagation=.*"moment" or "member"'):
        gx.GRUDynamics.load(fitted[0], propagation="mean")


def test_an_ensemble_is_its_members():
    """The vmapped program computes what each member alone would."""
    ensemble = GRUEnsemble(3, LAYOUT, 1, 8, rngs=nnx.Rngs(0))
    kernels = np.asarray(ensemble.members.cell.dense_h.kernel[...])
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    graphdef, state = nnx.split(ensemble.members)
    states, actions = (jnp.asarray(array) for array in window())
    hidden = ensemble.encode(states, actions).hidden
    for index in range(3):
        alone = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=index: leaf[i], state))
        np.testing.assert_allclose(hidden[index], alone.encode(states, actions).hidden, atol=1e-6)


@pytest.mark.slow
def test_a_gaussian_head_finds_the_noise(tmp_path):
    data = write_logs(tmp_path, 60, noise=0.3)
    task = gx.GRUDynamicsTask(hidden_size=32, learning_rate=5e-3, gaussian=True, train_horizon=1)
    result = gx.Trainer(max_epochs=6, callbacks=[gx.GradientClipping(1.0), gx.EMA(0.98)]).fit(task, data)
    states = np.stack([t.states for t in data.trajectories("test")])
    actions = np.stack([t.actions for t in data.trajectories("test")])
    dynamics = gx.GRUDynamics(result.task, result.model)
    history = dynamics.init_history(states[:, :6], actions[:, :6])
    _, _, variance = dynamics.step_with_variance(history, jnp.asarray(actions[:, 5]))
    deviation = np.sqrt(np.median(variance, axis=0))
    # The noise enters the velocities, and through them the positions, times the step.
    np.testing.assert_allclose(deviation, [0.3 * DT, 0.3 * DT, 0.3, 0.3], rtol=0.35)


def test_kinematics_are_those_of_the_state(tmp_path):
    import mujoco

    model = gx.physics.load_model("double-cart-pole")
    layout = StateLayout.from_model(model)
    task = gx.GRUDynamicsTask(hidden_size=8, layout=layout, action_dim=1, dt=0.02, history=6, horizon=5)
    from galvanax.physics.quiet_mjx import mjx

    dynamics = gx.GRUDynamics(task, task.build_model(nnx.Rngs(0)), system=mjx.put_model(model))
    state = np.array([0.3, 0.5, -1.0, 0, 0, 0], np.float32)
    found = dynamics.kinematics(jnp.asarray(state))
    data = mujoco.MjData(model)
    data.qpos[:] = state[:3]
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(found.site_xpos, data.site_xpos, atol=1e-5)
    with pytest.raises(gx.ConfigError, match="needs the system"):
        dataclasses.replace(dynamics, system=None).kinematics(jnp.asarray(state))


def test_the_report_stands_beside_simple_predictors_and_another_run(fitted, tmp_path):
    _, data, result = fitted
    beside = {"other": (result.task, result.model)}
    figures = result.task.report(result.model, data, tmp_path, num_examples=7, beside=beside)
    json.dumps(figures)
    assert figures["num_examples"] == 7
    assert figures["steps"] == 24
    growth = figures["error_growth"]
    assert set(growth) == {"model", "other", "persistence", "linear_extrapolation"}
    assert set(growth["model"]["mse"]) == set(growth["model"]["mae"]) == {"all", "positions", "angles", "velocities"}
    assert growth["other"] == growth["model"]
    ratio = growth["model"]["mse"]["all"][0] / growth["persistence"]["mse"]["all"][0]
    assert figures["mse_over_persistence_step_1"] == pytest.approx(ratio)
    for name in ("error_growth", "predicted_vs_true"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_error_growth_is_numpys():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 10, 3, 4)).astype(np.float32)
    predicted[..., 1] += 2 * np.pi  # a whole turn is no error
    growth = error_growth(LAYOUT, predicted, true, np.array([2.0, 4.0]))
    error = predicted.astype(np.float64) - true
    error[..., 1] = (error[..., 1] + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(growth.mse["angles"], (error[..., 1] ** 2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(growth.mae["velocities"], np.abs(error[..., 2:]).mean((0, 2)), rtol=1e-4)
    scaled = error / np.array([1, 1, 2, 4])
    np.testing.assert_allclose(growth.mse["all"], (scaled**2).mean((0, 2)), rtol=1e-4)
    states = rng.normal(size=(5, 6, 4)).astype(np.float32)
    line = states[:, -1:] + np.arange(1, 4)[None, :, None] * (states[:, -1:] - states[:, -2:-1])
    found = linear_extrapolation(LAYOUT, states, 3)
    np.testing.assert_allclose(LAYOUT.difference(found, line), 0, atol=1e-4)


def test_what_does_not_fit(fitted):
    with pytest.raises(gx.ConfigError, match=r"ArrayDataModule has no layout.*TrajectoryDataModule"):
        gx.Trainer(max_steps=1).fit(gx.GRUDynamicsTask(), gx.ArrayDataModule({"x": np.zeros((200, 1))}))
    with pytest.raises(gx.ConfigError, match=r"train_horizon=6: the data's windows have 1 to 5"):
        gx.Trainer(max_steps=1).fit(gx.GRUDynamicsTask(train_horizon=6), fitted[1])
    with pytest.raises(gx.ConfigError, match=r"nq=1, nv=1.*nq=2, nv=2"):
        gx.GRUDynamics.load(fitted[0], system="pendulum")
    dynamics = gx.GRUDynamics.load(fitted[0])
    with pytest.raises(gx.DataError, match=r"expected \(..., history, 4\)"):
        dynamics.init_history(np.zeros((6, 3)), np.zeros((6, 1)))


@pytest.mark.behaviour("reports 22")
@pytest.mark.parametrize("layout", [LAYOUT, BALL])
def test_how_a_state_is_written_makes_no_difference(layout):
    """Five turns more, wrapped, or quaternions of either sign: the same loss and the same gradient."""
    task = gx.GRUDynamicsTask(layout=layout, action_dim=1, history=6, horizon=5, hidden_size=8)
    model = task.build_model(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    if layout is LAYOUT:
        states, actions = window()
        turns, wrapped = states.copy(), states.copy()
        turns[..., 1] += 10 * np.pi
        wrapped[..., 1] = (states[..., 1] + np.pi) % (2 * np.pi) - np.pi
        others = [turns, wrapped]
    else:
        states, actions = rng.normal(size=(4, 30, 7)).astype(np.float32), rng.normal(size=(4, 30, 1)).astype(np.float32)
        states[..., :4] /= np.linalg.norm(states[..., :4], axis=-1, keepdims=True)
        flipped = states.copy()
        flipped[..., :4] *= rng.choice([-1, 1], (4, 30, 1))
        others = [flipped, np.concatenate([states[..., :4] * np.sign(states[..., :1]), states[..., 4:]], -1)]

    @nnx.jit
    def slope(model, states):
        batch = {"states": states[:, :11], "actions": actions[:, :11]}
        return nnx.value_and_grad(lambda model: task.loss(model, batch, jax.random.key(0))[0])(model)

    loss, gradient = slope(model, states)
    assert loss > 1e-3
    for other in others:
        found, its_gradient = slope(model, other)
        assert float(found) == pytest.approx(float(loss), rel=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, its_gradient)
