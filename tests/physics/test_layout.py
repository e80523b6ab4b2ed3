import dataclasses
import json

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.physics import StateLayout


def random_state(model, seed):
    rng = np.random.default_rng(seed)
    state = rng.normal(size=model.nq + model.nv)
    for place, _ in StateLayout.from_model(model).quaternions:
        state[place : place + 4] /= np.linalg.norm(state[place : place + 4])
    return state


def test_joint_types_decide(mixed):
    layout = StateLayout.from_model(mixed)
    assert (layout.nq, layout.nv, layout.state_dim) == (13, 11, 24)
    assert layout.quaternions == ((3, 3), (7, 6))
    assert layout.angles == (11,)
    assert layout.coordinates == (0, 1, 2, 12)
    assert layout.scalar_velocities == (0, 1, 2, 9, 10)


def test_json_round_trip(mixed):
    layout = StateLayout.from_model(mixed)
    again = StateLayout(**json.loads(json.dumps(dataclasses.asdict(layout))))
    assert again == layout
    assert hash(again) == hash(layout)


def test_features(mixed):
    layout = StateLayout.from_model(mixed)
    state = random_state(mixed, 0)
    matrices = []
    for place in (3, 7):
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, state[place : place + 4])
        matrices.append(matrix)
    expected = np.concatenate([state[[0, 1, 2, 12]], np.cos(state[11:12]), np.sin(state[11:12]), *matrices, state[13:]])
    features = layout.features(jnp.asarray(state))
    assert features.shape == (layout.num_features,)
    np.testing.assert_allclose(features, expected, atol=1e-6)


@pytest.mark.behaviour("reports 22")
def test_features_of_equal_states_are_equal(mixed):
    layout = StateLayout.from_model(mixed)
    state = random_state(mixed, 1)
    same = state.copy()
    same[3:7] *= -1
    same[7:11] *= -1
    same[11] += 2 * np.pi
    np.testing.assert_allclose(layout.features(jnp.asarray(state)), layout.features(jnp.asarray(same)), atol=1e-6)
    np.testing.assert_allclose(layout.difference(state, same), np.zeros(22), atol=1e-5)


def test_hinges_can_be_plain_coordinates(mixed):
    layout = StateLayout.from_model(mixed, angles=())
    assert layout.coordinates == (0, 1, 2, 11, 12)
    state = random_state(mixed, 2)
    turned = state.copy()
    turned[11] += 2 * np.pi
    assert abs(float(layout.difference(turned, state)[9]) - 2 * np.pi) < 1e-5


@pytest.mark.behaviour("reports 15")
@pytest.mark.parametrize("seed", range(4))
def test_difference_is_mujocos(mixed, seed):
    layout = StateLayout.from_model(mixed)
    a, b = random_state(mixed, seed), random_state(mixed, seed + 10)
    # An angle's difference is not wrapped by MuJoCo, and a quaternion's sign must not matter.
    a[11] = np.clip(a[11], b[11] - 3, b[11] + 3)
    a[3:7] *= -1
    expected = np.zeros(mixed.nv)
    mujoco.mj_differentiatePos(mixed, expected, 1.0, b[: mixed.nq], a[: mixed.nq])
    difference = layout.difference(np.stack([a, b]), np.stack([b, b]))
    assert difference.shape == (2, 22)
    np.testing.assert_allclose(difference[0, :11], expected, atol=1e-5)
    np.testing.assert_allclose(difference[0, 11:], (a - b)[13:], atol=1e-5)
    np.testing.assert_allclose(difference[1], 0, atol=1e-6)


def test_angles_wrap():
    layout = StateLayout(nq=2, nv=2, angles=(1,))
    difference = layout.difference(jnp.array([5.0, 3.0, 0.0, 0.0]), jnp.array([0.0, -3.0, 0.0, 0.0]))
    np.testing.assert_allclose(difference, [5.0, 6.0 - 2 * np.pi, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nq": 4, "nv": 4, "quaternions": ((0, 0),)}, "nq=4 and nv=4 differ by 0; expected 1"),
        ({"nq": 4, "nv": 3, "quaternions": ((1, 0),)}, r"quaternions.*leave the state"),
        ({"nq": 8, "nv": 6, "quaternions": ((0, 0), (2, 3))}, r"quaternions.*overlap"),
        ({"nq": 2, "nv": 2, "angles": (2,)}, r"angles: got \(2,\); expected different places out of \(0, 1\)"),
        ({"nq": 2, "nv": 2, "angles": (1, 1)}, "different places"),
    ],
)
def test_impossible_layouts(fields, message):
    with pytest.raises(ValueError, match=message):
        StateLayout(**fields)
