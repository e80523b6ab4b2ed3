import dataclasses
import json

import cattrs
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax import ConfigError
from galvanax.envs.randomization import Drawn, Randomization, apply
from galvanax.physics import load_model
from galvanax.physics.derived_constants import refresh_constants
from galvanax.physics.quiet_mjx import mjx

NUM_JOINTS = 12
EVERYTHING = {
    "friction": (0.3, 1.2),
    "added_trunk_mass": (-1.0, 3.0),
    "link_mass_scale": (0.9, 1.1),
    "com_offset": (-0.05, 0.04),
    "kp_scale": (0.8, 1.3),
    "kd_scale": (0.7, 1.1),
    "torque_scale": (0.9, 1.2),
    "armature_scale": (1.0, 1.5),
    "action_delay": (0.01, 0.03),
}

# A ball with an arm that slides and rolls off: the stiffness of its contact depends on all the masses.
BALL = """
<mujoco>
  <option timestep="0.002" gravity="3 1 -9.81" iterations="20" ls_iterations="20"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 1"/>
    <body name="trunk" pos="0 0 .11"><freejoint/>
      <geom name="ball" size=".1" mass="2"/>
      <body pos="0 0 .1"><joint name="arm" axis="0 1 0" armature=".01"/>
        <geom type="capsule" fromto="0 0 0 .3 0 .1" size=".03" mass=".5"/>
      </body>
    </body>
  </worldbody>
  <contact><pair geom1="floor" geom2="ball" condim="3" friction="1 1 .005 .0001 .0001"/></contact>
</mujoco>
"""


@pytest.fixture(scope="module")
def go2():
    return mjx.put_model(load_model("go2"))


@pytest.fixture(scope="module")
def many(go2):
    """400 draws of everything."""
    return drawn(go2, Randomization(**EVERYTHING), 400)


def drawn(model, randomization, count, pick=lambda draw: draw):
    """`count` draws; compiles no more than is picked of them."""
    draw = jax.jit(jax.vmap(lambda rng: pick(randomization.draw(model, 1, NUM_JOINTS, rng))))
    return draw(jax.random.split(jax.random.key(0), count))


def assert_uniform(samples, low, high):
    """Independent samples along the first axis, of one column or of many that share a range."""
    samples = np.asarray(samples, np.float64).reshape(len(samples), -1)
    slack = 1e-4 * (high - low)
    assert samples.min() >= low - slack
    assert samples.max() <= high + slack
    quantiles = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    expected = low + (high - low) * np.array([[0.1], [0.5], [0.9]])
    np.testing.assert_allclose(quantiles, np.broadcast_to(expected, quantiles.shape), atol=0.13 * (high - low))
    if samples.shape[1] > 1:  # each column on its own
        correlations = np.corrcoef(samples.T) - np.eye(samples.shape[1])
        assert np.abs(correlations).max() < 0.25


def test_draws_fill_their_ranges(go2, many):
    model = many.model
    friction = np.asarray(model["pair_friction"])
    assert_uniform(friction[:, 0, 0], *EVERYTHING["friction"])
    assert (friction[:, :, :2] == friction[:, :1, :1]).all()  # one ground, both tangents
    np.testing.assert_array_equal(friction[:, :, 2:], np.broadcast_to(go2.pair_friction[:, 2:], (400, 4, 3)))

    links = np.asarray(model["body_mass"])[:, 2:] / go2.body_mass[2:]
    assert_uniform(links, *EVERYTHING["link_mass_scale"])
    trunk = np.asarray(model["body_mass"])[:, 1] - go2.body_mass[1]
    assert trunk.min() < -0.9
    assert trunk.max() > 2.9
    np.testing.assert_allclose(
        model["body_inertia"][:, 1:] / go2.body_inertia[1:],
        np.broadcast_to((model["body_mass"] / go2.body_mass)[:, 1:, None], (400, go2.nbody - 1, 3)),
        rtol=1e-5,
    )
    assert_uniform(np.asarray(model["body_ipos"])[:, 1] - go2.body_ipos[1], *EVERYTHING["com_offset"])
    np.testing.assert_array_equal(model["body_ipos"][:, 2:], np.broadcast_to(go2.body_ipos[2:], (400, 12, 3)))
    assert_uniform(model["dof_armature"][:, 6:] / go2.dof_armature[6:], *EVERYTHING["armature_scale"])
    assert not np.asarray(model["dof_armature"])[:, :6].any()

    for name in ("kp_scale", "kd_scale", "torque_scale"):
        assert getattr(many, name).shape == (400, NUM_JOINTS)
        assert_uniform(getattr(many, name), *EVERYTHING[name])
    assert many.action_delay.shape == (400,)
    assert_uniform(many.action_delay, *EVERYTHING["action_delay"])
    # Between the quantities too.
    columns = [friction[:, 0, 0], trunk, many.kp_scale[:, 0], many.kd_scale[:, 0], many.action_delay]
    assert np.abs(np.corrcoef(np.stack(columns)) - np.eye(5)).max() < 0.2


def test_the_trunk_alone(go2):
    masses = drawn(go2, Randomization(added_trunk_mass=(-1, 3)), 400, lambda draw: draw.model["body_mass"])
    assert_uniform(masses[:, 1] - go2.body_mass[1], -1, 3)
    np.testing.assert_array_equal(masses[:, 2:], np.broadcast_to(go2.body_mass[2:], (400, 12)))


def test_a_draw_depends_on_no_other(go2, many):
    # The trunk's mass has two sources.
    for name in set(EVERYTHING) - {"added_trunk_mass", "link_mass_scale"}:
        leaf = {"friction": "pair_friction", "com_offset": "body_ipos", "armature_scale": "dof_armature"}.get(name)

        def pick(draw, name=name, leaf=leaf):
            return draw.model[leaf] if leaf else getattr(draw, name)

        alone = drawn(go2, Randomization(**{name: EVERYTHING[name]}), 400, pick)
        np.testing.assert_allclose(alone, pick(many), rtol=1e-6, err_msg=name)


def test_off_costs_nothing(go2):
    off = Randomization()
    assert off.is_off
    draw = off.draw(go2, 1, NUM_JOINTS, jax.random.key(0))
    assert draw.model == {}
    assert apply(go2, draw) is go2
    for scale in (draw.kp_scale, draw.kd_scale, draw.torque_scale):
        np.testing.assert_array_equal(scale, np.ones(NUM_JOINTS))
    assert draw.action_delay == 0
    assert "random_bits" not in str(jax.make_jaxpr(lambda rng: off.draw(go2, 1, NUM_JOINTS, rng))(jax.random.key(0)))


@pytest.mark.parametrize(
    ("settings", "leaves"),
    [
        ({"friction": (0.5, 1)}, {"pair_friction"}),
        ({"kp_scale": (0.9, 1.1), "action_delay": (0, 0.01)}, set()),
        ({"com_offset": (-0.1, 0.1)}, {"body_ipos", "dof_M0", "body_invweight0", "dof_invweight0", "actuator_acc0"}),
    ],
)
def test_only_what_differs_is_carried(go2, settings, leaves):
    randomization = Randomization(**settings)
    assert not randomization.is_off

    def draw(rng):
        return randomization.draw(go2, 1, NUM_JOINTS, rng)

    assert set(jax.eval_shape(draw, jax.random.key(0)).model) == leaves
    refreshes = "cholesky" in str(jax.make_jaxpr(draw)(jax.random.key(0)))
    assert refreshes == ("body_invweight0" in leaves)


@pytest.mark.behaviour("reports 27")
def test_derived_constants_come_along(go2, many):
    def fresh(draw):
        inputs = {name: draw.model[name] for name in ("body_mass", "body_inertia", "body_ipos", "dof_armature")}
        fresh = refresh_constants(go2.replace(**inputs))
        return {name: getattr(fresh, name) for name in draw.model}

    five = jax.tree.map(lambda leaf: leaf[:5], many)
    expected = jax.jit(jax.vmap(fresh))(five)
    for name in ("body_subtreemass", "dof_M0", "body_invweight0", "dof_invweight0", "actuator_acc0"):
        np.testing.assert_allclose(five.model[name], expected[name], rtol=1e-5, err_msg=name)
    applied = apply(go2, jax.tree.map(lambda leaf: leaf[0], many))
    np.testing.assert_array_equal(applied.body_invweight0, many.model["body_invweight0"][0])
    assert jax.tree.structure(applied) == jax.tree.structure(go2)


def test_geoms_that_collide_without_pairs():
    model = mjx.put_model(
        mujoco.MjModel.from_xml_string(
            """<mujoco><worldbody><geom type="plane" size="1 1 1" friction="2 .1 .2"/>
            <body><freejoint/><geom size=".1"/><geom contype="0" conaffinity="0" size=".2"/></body>
            </worldbody></mujoco>"""
        )
    )
    leaves = Randomization(friction=(0.4, 0.4)).draw(model, 1, 0, jax.random.key(0)).model
    assert set(leaves) == {"geom_friction"}
    # MuJoCo takes the larger of two: the foot must come along. What can't touch anything is left alone.
    expected = [[0.4, 0.1, 0.2], [0.4, 0.005, 0.0001], [1, 0.005, 0.0001]]
    np.testing.assert_allclose(leaves["geom_friction"], expected, rtol=1e-6)


@pytest.mark.behaviour("reports 27")
def test_a_randomised_model_steps_as_mujocos():
    """MuJoCo's own model with the same masses, centres of mass, armatures and friction, over 0.3 s in contact."""
    reference = mujoco.MjModel.from_xml_string(BALL)
    model = mjx.put_model(reference)
    ranges = {
        "friction": (0.1, 0.3),
        "added_trunk_mass": (1.0, 3.0),
        "link_mass_scale": (0.5, 2.0),
        "com_offset": (-0.03, 0.03),
        "armature_scale": (2.0, 4.0),
    }
    randomization = Randomization(**ranges)
    rngs = jax.random.split(jax.random.key(3), 2)
    draws = jax.jit(jax.vmap(lambda rng: randomization.draw(model, 1, 1, rng)))(rngs)

    @jax.jit
    @jax.vmap
    def roll(draw):
        changed = apply(model, draw)
        data = mjx.make_data(model)
        return jax.lax.scan(lambda data, _: (mjx.step(changed, data),) * 2, data, None, 150)[1].qpos

    paths = np.asarray(roll(draws))

    def expected(row, refresh):
        other = mujoco.MjModel.from_xml_string(BALL)
        for name in ("body_mass", "body_inertia", "body_ipos", "dof_armature", "pair_friction"):
            getattr(other, name)[:] = draws.model[name][row]
        data = mujoco.MjData(other)
        if refresh:
            mujoco.mj_setConst(other, data)
            for name in ("body_subtreemass", "dof_M0", "body_invweight0", "dof_invweight0"):
                np.testing.assert_allclose(draws.model[name][row], getattr(other, name), rtol=1e-5, atol=1e-9)
        mujoco.mj_resetData(other, data)
        path = []
        for _ in range(150):
            mujoco.mj_step(other, data)
            path.append(data.qpos.copy())
        return np.stack(path)

    for row in range(2):
        np.testing.assert_allclose(paths[row], expected(row, True), atol=1e-5)
    assert np.abs(paths[0] - paths[1]).max() > 0.05
    # This is what stale constants would do.
    assert np.abs(expected(0, False) - expected(0, True)).max() > 1e-3


def test_pushes():
    """Set the velocity, as legged_gym's do: whatever it was, it is in their bounds after."""
    randomization = Randomization(push_interval=5, push_velocity=1.5, push_angular=0.4)
    keys = jax.random.split(jax.random.key(1), 400)
    before = np.array([4.0, -3.0, 2.0, 1.5, -2.5, 3.5], np.float32)  # beyond all bounds
    pushed = jax.vmap(randomization.push, (None, 0))(before, keys)
    assert_uniform(pushed[:, :2], -1.5, 1.5)
    assert (np.asarray(pushed[:, 2]) == before[2]).all()
    assert_uniform(pushed[:, 3:], -0.4, 0.4)
    sideways = jax.vmap(Randomization(push_interval=5, push_velocity=1.5).push, (None, 0))(before, keys)
    np.testing.assert_array_equal(sideways[:, :2], pushed[:, :2])
    assert (np.asarray(sideways[:, 2:]) == before[2:]).all()
    np.testing.assert_array_equal(Randomization().push(before, keys[0]), before)
    assert not randomization.is_off


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"friction": (1.0, 0.4)}, r"Randomization\.friction=\(1\.0, 0\.4\).*low <= high.*Nearest: \(0\.4, 1\.0\)"),
        ({"friction": (0.0, 1.0)}, r"Randomization\.friction=.*> 0"),
        ({"link_mass_scale": (-0.5, 1.0)}, r"Randomization\.link_mass_scale=.*> 0"),
        ({"kp_scale": (-0.1, 1.0)}, r"Randomization\.kp_scale=.*>= 0"),
        ({"com_offset": (0.0, float("nan"))}, r"Randomization\.com_offset=.*finite"),
        ({"added_trunk_mass": (-1.0, float("inf"))}, r"Randomization\.added_trunk_mass=.*finite"),
        ({"action_delay": 0.02}, r"Randomization\.action_delay=0\.02: expected \(low, high\)"),
        ({"torque_scale": (1.0, 1.1, 1.2)}, r"Randomization\.torque_scale=.*\(low, high\)"),
        ({"armature_scale": ("a", "b")}, r"Randomization\.armature_scale=.*finite"),
        ({"push_interval": 0, "push_velocity": 1.0}, r"Randomization\.push_interval=0: expected a finite number > 0"),
        ({"push_interval": 5, "push_velocity": -1.0}, r"Randomization\.push_velocity=-1\.0: .*>= 0"),
        ({"push_interval": 5}, r"Randomization\.push_interval=5 .*at least one"),
        ({"push_angular": 1.0}, r"Randomization\.push_interval=None .*an interval"),
        ({"resample": "episodes"}, r"Randomization\.resample='episodes'.*Nearest: episode"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Randomization(**settings)


def test_settings_that_do_not_fit_the_model(go2):
    rng = jax.random.key(0)
    with pytest.raises(ConfigError, match=r"trunk=0 .*expected 1 to 13"):
        Randomization().draw(go2, 0, NUM_JOINTS, rng)
    heavy = Randomization(added_trunk_mass=(-6.5, 0), link_mass_scale=(0.9, 1))
    with pytest.raises(ConfigError, match=r"added_trunk_mass=\(-6\.5, 0\) kg .*low > -6\.22"):
        jax.jit(lambda rng: heavy.draw(go2, 1, NUM_JOINTS, rng))(rng)
    cart = mjx.put_model(load_model("cart-pole"))
    with pytest.raises(ConfigError, match=r"friction is on, but nothing.*friction=None"):
        Randomization(friction=(0.5, 1)).draw(cart, 1, 1, rng)


def test_settings_are_json_and_hashable():
    randomization = Randomization(friction=(0.3, 1.2), push_interval=5, push_velocity=1.5)
    text = json.dumps(dataclasses.asdict(randomization))
    assert Randomization(**json.loads(text)) == randomization
    assert hash(Randomization(**json.loads(text))) == hash(randomization)
    assert cattrs.structure(json.loads(text), Randomization) == randomization
    assert "friction=(0.3, 1.2)" in repr(randomization)


def test_a_draw_is_a_pytree(many):
    assert isinstance(jax.tree.map(jnp.asarray, many), Drawn)
    assert {len(leaf) for leaf in jax.tree.leaves(many)} == {400}
