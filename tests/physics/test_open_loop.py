import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from flax import nnx

from galvanax.physics import StateLayout, mujoco_rollout, one_step_velocity_error, open_loop_error

PLAIN = StateLayout(nq=1, nv=1)


def line(count=3, length=4):
    """Trajectories of constant velocity: q grows by v = i + 1 each step."""
    velocity = np.arange(1.0, count + 1)[:, None] * np.ones(length + 1)
    return np.stack([velocity * np.arange(length + 1), velocity], axis=-1), np.zeros((count, length, 0))


def test_reference_is_mujocos(pendulum):
    rng = np.random.default_rng(0)
    starts, actions = rng.normal(size=(3, 2)), rng.uniform(-2, 2, (3, 5, 1))
    states = mujoco_rollout(pendulum, starts, actions, control_dt=0.04)
    assert states.shape == (3, 6, 2)
    data = mujoco.MjData(pendulum)
    for i in range(3):
        mujoco.mj_resetData(pendulum, data)
        data.qpos, data.qvel = starts[i, :1], starts[i, 1:]
        for t in range(5):
            np.testing.assert_allclose(states[i, t], [*data.qpos, *data.qvel], atol=1e-12)
            data.ctrl = actions[i, t]
            mujoco.mj_step(pendulum, data, 2)
    np.testing.assert_allclose(states[2, 5], [*data.qpos, *data.qvel], atol=1e-12)


def test_reference_without_actuators():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><joint type='slide' axis='0 0 1'/><geom size='.1'/></body></worldbody></mujoco>"
    )
    states = mujoco_rollout(model, np.zeros((2, 2)), np.zeros((2, 3, 0)))
    np.testing.assert_allclose(states[:, :, 1], [-9.81 * 0.002 * np.arange(4)] * 2)


def test_errors_of_a_step_that_overshoots():
    """Each step is 0.5 too far, so after k steps the position is off by k / 2; persistence is off by k v."""
    states, actions = line()

    def step(state, action):
        return jnp.stack([state[..., 0] + state[..., 1] + 0.5, state[..., 1]], axis=-1)

    error = open_loop_error(step, PLAIN, states, actions, horizon=3)
    # Half: the mean runs over position and velocity.
    np.testing.assert_allclose(error.model, [0.25 / 2, 1.0 / 2, 2.25 / 2], rtol=1e-5)
    np.testing.assert_allclose(error.persistence, np.array([1, 4, 9]) * (1 + 4 + 9) / 3 / 2, rtol=1e-5)
    assert error.ratio == pytest.approx((0.25 + 1 + 2.25) / 3 / (14 * 14 / 9), rel=1e-5)


def test_one_step_velocity_error():
    states = np.cumsum(np.ones((2, 5, 2)), axis=1)
    error = one_step_velocity_error(lambda state, action: state + 0.5, PLAIN, states, np.zeros((2, 4, 1)))
    assert error.model == pytest.approx(0.25)
    assert error.persistence == pytest.approx(1.0)


def test_a_model_changed_in_place_is_evaluated_anew():
    class Push(nnx.Module):
        def __init__(self):
            self.by = nnx.Param(jnp.zeros(()))

        def step(self, state, action):
            return state + self.by[...]

    states, actions = line()
    model = Push()
    step = model.step
    one_step_velocity_error(step, PLAIN, states, actions)
    open_loop_error(step, PLAIN, states, actions, 1)
    model.by[...] = jnp.ones(())
    assert one_step_velocity_error(step, PLAIN, states, actions).model == pytest.approx(1.0)
    assert open_loop_error(step, PLAIN, states, actions, 1).model[0] == pytest.approx((1 + (0 + 1 + 4) / 3) / 2)


def test_arrays_that_do_not_fit(pendulum):
    states, actions = line()
    with pytest.raises(ValueError, match="horizon=9; expected 1 to 4"):
        open_loop_error(lambda s, a: s, PLAIN, states, actions, 9)
    with pytest.raises(ValueError, match=r"states have shape \(3, 4, 2\); expected \(3, 5, 2\)"):
        open_loop_error(lambda s, a: s, PLAIN, states[:, :-1], actions, 1)
    with pytest.raises(ValueError, match=r"expected \(n, 2\) and \(n, length, 1\)"):
        mujoco_rollout(pendulum, np.zeros((2, 3)), np.zeros((2, 4, 1)))
