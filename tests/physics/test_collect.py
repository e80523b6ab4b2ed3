import jax
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from galvanax.physics import (
    StateLayout,
    WideStart,
    collect_random_rollouts,
    count_substeps,
    extract_state_features,
    integrate_positions,
    max_contacts,
    semi_implicit_euler,
)


def test_transitions_are_mujocos(pendulum, rollouts):
    """Every transition equals one step of C MuJoCo from its state under its action."""
    data = mujoco.MjData(pendulum)
    for i in range(6):
        for t in range(20):
            data.qpos, data.qvel = rollouts.states[i, t, :1], rollouts.states[i, t, 1:]
            data.ctrl = rollouts.actions[i, t]
            mujoco.mj_step(pendulum, data)
            found = [*data.qpos, *data.qvel]
            np.testing.assert_allclose(rollouts.next_states[i, t], found, atol=2e-5)
    np.testing.assert_array_equal(rollouts.states[:, 1:], rollouts.next_states[:, :-1])


def test_accelerations_belong_to_their_action(pendulum, rollouts):
    """The integrator reproduces the next state; the acceleration of the step before (the stale one) does not."""
    layout = StateLayout.from_model(pendulum)

    def error(accelerations):
        predicted = semi_implicit_euler(layout, rollouts.states[:, 1:], accelerations, 0.02)
        return np.abs(predicted - rollouts.next_states[:, 1:]).max()

    assert error(rollouts.accelerations[:, 1:]) < 1e-5
    assert error(rollouts.accelerations[:, :-1]) > 0.1


def test_actions_fill_their_range(rollouts):
    assert rollouts.actions.shape == (6, 20, 1)
    assert -2 <= rollouts.actions.min() < -1.8
    assert 1.8 < rollouts.actions.max() <= 2


def test_pendulum_touches_nothing(pendulum, rollouts):
    assert max_contacts(pendulum, rollouts.states) == 0
    assert not np.any(pendulum.geom_contype | pendulum.geom_conaffinity)


def test_max_contacts_counts():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 1'/><body pos='0 0 .1'><joint type='slide' axis='0 0 1'/>"
        "<geom size='.1'/></body></worldbody></mujoco>"
    )
    assert max_contacts(model, np.array([[1.0, 0.0]])) == 0
    assert max_contacts(model, np.array([[[1.0, 0.0], [-0.01, 0.0]]])) == 1


def test_a_rollout_does_not_depend_on_how_many_there_are(pendulum, rollouts):
    fewer = collect_random_rollouts(pendulum, 2, 20, -2.0, 2.0, jax.random.key(0), WideStart())
    for few, many in zip(fewer, rollouts, strict=True):
        np.testing.assert_allclose(few, many[:2], atol=1e-5)
    np.testing.assert_array_equal(fewer.actions, rollouts.actions[:2])


@pytest.mark.slow
def test_mjx_model_bodies_that_turn_and_held_actions(mixed):
    """Two timesteps a control step, a model put on the device by the caller, nq != nv, the default start."""
    found = collect_random_rollouts(mjx.put_model(mixed), 2, 3, np.array([-1.0]), np.array([1.0]), jax.random.key(3),
                                    control_dt=0.02)  # fmt: skip
    data = mujoco.MjData(mixed)
    for i in range(2):
        data.qpos, data.qvel = found.states[i, 0, :13], found.states[i, 0, 13:]
        for t in range(3):
            before = data.qvel.copy()
            data.ctrl = found.actions[i, t]
            mujoco.mj_step(mixed, data, 2)
            np.testing.assert_allclose(found.next_states[i, t], [*data.qpos, *data.qvel], atol=1e-4)
            np.testing.assert_allclose(found.accelerations[i, t], (data.qvel - before) / 0.02, atol=5e-3)
    shift = StateLayout.from_model(mixed).difference(found.states[:, 0], np.append(mixed.qpos0, np.zeros(11)))
    assert 0.05 < np.abs(shift[:, :11]).max() <= 0.1
    assert 0.05 < np.abs(shift[:, 11:]).max() <= 0.1


def test_wide_start(mixed):
    model = mjx.put_model(mixed)
    rngs = jax.random.split(jax.random.key(0), 500)
    start = WideStart(velocity_min=-3.0, velocity_max=tuple(np.arange(11.0)))
    states = np.asarray(jax.jit(jax.vmap(lambda rng: extract_state_features(start(model, rng))))(rngs))
    assert states[:, 11].min() < -3.1
    assert states[:, 11].max() > 3.1
    assert np.abs(states[:, 11]).max() <= np.pi + 1e-6
    assert -0.2 <= states[:, 12].min() < -0.19
    assert 0.29 < states[:, 12].max() <= 0.3
    np.testing.assert_allclose(states[:, :3], 0)
    for place in (3, 7):
        np.testing.assert_allclose(np.linalg.norm(states[:, place : place + 4], axis=1), 1, atol=1e-5)
        # Uniform rotations: each component has mean square 1/4.
        np.testing.assert_allclose((states[:, place : place + 4] ** 2).mean(0), 0.25, atol=0.05)
    speeds = states[:, 13:]
    assert np.all(speeds >= -3)
    assert np.all(speeds <= np.arange(11.0))
    assert np.all(speeds.max(0) > np.arange(11.0) - 0.3)


def test_no_actuators():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><joint type='slide' axis='0 0 1'/><geom size='.1'/></body></worldbody></mujoco>"
    )

    def from_rest(model, rng):
        return mjx.make_data(model)

    found = collect_random_rollouts(model, 2, 4, 0.0, 0.0, jax.random.key(0), from_rest)
    assert found.actions.shape == (2, 4, 0)
    np.testing.assert_allclose(found.accelerations, -9.81, rtol=1e-4)


def test_position_integration_agrees_with_the_engine(rollouts, pendulum):
    layout = StateLayout.from_model(pendulum)
    moved = integrate_positions(layout, rollouts.states[..., :1], rollouts.next_states[..., 1:], 0.02)
    np.testing.assert_allclose(moved, rollouts.next_states[..., :1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_min": np.zeros(3)}, r"action_min has shape \(3,\); expected one number or \(1,\)"),
        ({"action_min": 3.0}, r"action_min\[0\]=3.0 is above action_max\[0\]=2.0"),
        ({"action_max": np.nan}, "action_max=nan; expected finite"),
        ({"control_dt": 0.03}, r"control_dt=0.03 s is no multiple of the model's timestep 0.02 s.*nearest is 0.04"),
        ({"control_dt": 0.001}, "nearest is 0.02"),
        ({"num_rollouts": 0}, "num_rollouts=0; expected at least 1"),
    ],
)
def test_settings_that_do_not_fit(pendulum, settings, message):
    given = {"num_rollouts": 1, "rollout_length": 1, "action_min": -2.0, "action_max": 2.0, **settings}
    with pytest.raises(ValueError, match=message):
        collect_random_rollouts(pendulum, rng=jax.random.key(0), **given)


def test_substeps(pendulum):
    assert count_substeps(pendulum, None) == 1
    assert count_substeps(mjx.put_model(pendulum), 0.1) == 5


def test_diverging_rollouts_are_named(pendulum):
    def broken(model, rng):
        data = mjx.make_data(model)
        return data.replace(qvel=data.qvel.at[0].set(jax.numpy.where(jax.random.uniform(rng) < 0.5, jax.numpy.inf, 0)))

    with pytest.raises(ValueError, match=r"\d of 6 rollouts diverged, first rollout \d at step 0"):
        collect_random_rollouts(pendulum, 6, 2, -1.0, 1.0, jax.random.key(0), broken)


def test_empty_velocity_range(pendulum):
    with pytest.raises(ValueError, match=r"velocity_min=1.0 is above velocity_max=-1.0"):
        WideStart(1.0, -1.0)(mjx.put_model(pendulum), jax.random.key(0))
