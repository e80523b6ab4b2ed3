"""`gx.identify`: the parameters with which C MuJoCo made the logs are found again."""

import json

import mujoco
import numpy as np
import polars as pl
import pytest

import galvanax as gx
from galvanax.cli.main import main
from galvanax.physics import MJXSystem, bundled_models, load_model

NOISE = np.array([0.01, 0.05])  # rad (m), rad/s (m/s)


def simulate(model, starts, actions, substeps, late=0, control=lambda action, data: action):
    """States `(N, T + 1, nq + nv)` of C MuJoCo; actions come `late` physics steps late, the first from the start."""
    trajectories = []
    for start, sequence in zip(starts, actions, strict=True):
        data = mujoco.MjData(model)
        data.qpos, data.qvel = start[: model.nq], start[model.nq :]
        states = [start]
        for step in range(len(sequence) * substeps):
            data.ctrl = control(sequence[max(step - late, 0) // substeps], data)
            mujoco.mj_step(model, data)
            if (step + 1) % substeps == 0:
                states.append(np.concatenate([data.qpos, data.qvel]))
        trajectories.append(states)
    return np.array(trajectories)


def noisy(model, states, rng):
    """White noise on positions and velocities; a rotation is turned."""
    states = states.copy()
    for row in states.reshape(-1, states.shape[-1]):
        qpos = row[: model.nq].copy()
        mujoco.mj_integratePos(model, qpos, NOISE[0] * rng.normal(size=model.nv), 1.0)
        row[: model.nq], row[model.nq :] = qpos, row[model.nq :] + NOISE[1] * rng.normal(size=model.nv)
    return states


def compiled(name, **changes):
    """A bundled model with other numbers in its file: `(old, new)`, each old text standing there once."""
    text = bundled_models()[name].read_text()
    for old, new in changes.values():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return mujoco.MjModel.from_xml_string(text)


def changed_pendulum(mass, damping, gain=1.0):
    """The pole's two geoms weigh 1 kg together in the file. A gear is a gain on a hinge."""
    return compiled(
        "pendulum",
        rod=('mass="0.2"', f'mass="{0.2 * mass}"'),
        bob=('mass="0.8"', f'mass="{0.8 * mass}"'),
        damping=('damping="0.05"', f'damping="{damping}"'),
        gear=('gear="1"', f'gear="{gain}"'),
    )


def changed_cart_pole(slider, hinge=""):
    """A cart of 1.4 kg and a pole of 0.15 kg; and other attributes of both joints."""
    return compiled(
        "cart-pole",
        cart=('mass="1"', 'mass="1.4"'),
        pole=('mass="0.1"', 'mass="0.15"'),
        slider=('damping="0.5"', slider),
        hinge=('name="hinge"', f'name="hinge" {hinge}'),
    )


def pendulum_logs(rng, model, late=0, substeps=2, count=8, rows=120):
    """With smooth torques, 0.02 s a physics step."""
    time = np.arange(rows) * 0.02 * substeps
    phase = rng.uniform(0, 2 * np.pi, (2, count, 1))
    torques = (np.sin(3 * time + phase[0]) + np.sin(7.3 * time + phase[1]))[..., None]
    states = simulate(model, rng.normal(size=(count, 2)) * [1, 2], torques, substeps, late)
    return {"states": noisy(model, states, rng), "actions": torques, "dt": 0.02 * substeps}


def test_mass_damping_and_delay_of_a_pendulum():
    """The delay ends between two control steps. Errors are as large as the standard errors say."""
    logs = pendulum_logs(np.random.default_rng(0), changed_pendulum(1.3, 0.12), late=3)
    found = gx.identify("pendulum", logs, ("action_delay", "body_mass/*", "dof_damping/*"))
    truth = {"body_mass/pole": 1.3, "dof_damping/hinge": 0.12, "action_delay": 0.06}
    assert found.values == pytest.approx(truth, rel=0.03)
    assert found.values.keys() == truth.keys()
    for name, true in truth.items():
        assert abs(found.values[name] - true) < 4 * found.standard_errors[name] < 0.1 * true
    assert found.initial == {"body_mass/pole": 1.0, "dof_damping/hinge": 0.05, "action_delay": 0.0}
    assert found.converged
    assert found.undetermined == ()
    np.testing.assert_allclose(found.noise, NOISE, rtol=0.1)
    assert found.error_after == pytest.approx(1, abs=0.1)
    assert found.error_before > 2
    # The inertia has grown with the mass.
    assert found.model.body_inertia[1] == pytest.approx(1.3 * load_model("pendulum").body_inertia[1], rel=0.03)
    assert found.system.mj_model is found.model
    assert found.system.control_dt == pytest.approx(0.04)


def test_what_logs_cannot_tell_is_named(tmp_path, capsys):
    """Mass, damping and gain of a pendulum have one common factor: as much torque on twice of all moves it alike."""
    logs = pendulum_logs(np.random.default_rng(1), changed_pendulum(1.3, 0.12, 1.1), substeps=1)
    for number, (states, actions) in enumerate(zip(logs["states"], logs["actions"], strict=True)):
        columns = np.hstack([0.02 * np.arange(len(actions))[:, None], states[:-1], actions])
        frame = pl.DataFrame(columns, schema=["timestamp", "qpos_0", "qvel_0", "ctrl_0"], orient="row")
        frame.write_csv(tmp_path / f"{number}.csv")
    output = tmp_path / "pendulum.json"
    flags = ["--data", str(tmp_path / "*.csv"), "--output", str(output)]
    main(["identify", "pendulum", *flags, "--parameters", "body_mass/*", "dof_damping/*", "actuator_gain/*"])
    names = ["body_mass/pole", "dof_damping/hinge", "actuator_gain/torque"]
    printed = capsys.readouterr().out
    assert f"The logs don't tell: {', '.join(names)}." in printed
    assert printed.count("not told") == 3
    written = json.loads(output.read_text())
    assert written["undetermined"] == names
    assert written["standard_errors"] == dict.fromkeys(names)
    mass, damping, gain = (written["values"][name] for name in names)
    assert (mass / gain, damping / gain) == pytest.approx((1.3 / 1.1, 0.12 / 1.1), rel=0.05)
    model = gx.set_parameters(load_model("pendulum"), written["values"])
    assert model.actuator_gainprm[0, 0] == gain
    with pytest.raises(SystemExit):
        main(["identify", "pendulum", *flags, "--parameters", "body_mass/*"])
    assert "pendulum.json is there" in capsys.readouterr().err


@pytest.mark.slow
def test_masses_and_friction_of_a_cart_pole():
    """Through MuJoCo's constraint solver; the fit starts where the rail has no friction."""
    rng = np.random.default_rng(0)
    truth = {"body_mass/cart": 1.4, "body_mass/pole": 0.15, "dof_damping/slider": 0.8, "dof_frictionloss/slider": 0.3}

    time = np.arange(200) * 0.02
    pushes = 0.5 * np.sin(rng.uniform(3, 9, (8, 1)) * time + rng.uniform(0, 6, (8, 1)))[..., None]
    starts = rng.normal(size=(8, 4)) * [0.2, 1, 0.2, 1] + [0, np.pi, 0, 0]
    model = changed_cart_pole(slider='damping="0.8" frictionloss="0.3"')
    logs = {"states": noisy(model, simulate(model, starts, pushes, 2), rng), "actions": pushes, "dt": 0.02}
    found = gx.identify(gx.envs.load_system("cart-pole"), logs, tuple(truth))
    assert found.values == pytest.approx(truth, rel=0.1)
    for name, true in truth.items():
        assert abs(found.values[name] - true) < 4 * found.standard_errors[name]


@pytest.mark.slow
def test_leg_masses_of_a_go2():
    """On its feet, with PD control in C MuJoCo as the targets say it."""
    rng = np.random.default_rng(0)
    system = gx.envs.load_system("go2")
    model, targets = system.mj_model, system.targets
    truth = {
        f"body_mass/{leg}_{link}": float(model.body(f"{leg}_{link}").mass[0] * rng.uniform(0.7, 1.4))
        for leg in ("FL", "FR", "RL", "RR")
        for link in ("thigh", "calf")
    }
    default, kp, kd, limit = (np.array(getattr(targets, n)) for n in ("default", "kp", "kd", "torque_limits"))
    qpos = [int(model.joint(name).qposadr[0]) for name in targets.joints]
    motors = [int(np.flatnonzero(model.actuator_trnid[:, 0] == model.joint(name).id)[0]) for name in targets.joints]
    low, high = np.array([model.joint(name).range for name in targets.joints]).T

    def control(action, data):
        target = np.clip(default + targets.action_scale * action, low, high)
        torque = np.zeros(model.nu)
        torque[motors] = np.clip(kp * (target - data.qpos[qpos]) - kd * data.qvel[np.array(qpos) - 1], -limit, limit)
        return torque

    standing = np.concatenate([model.qpos0, np.zeros(model.nv)])
    standing[qpos] = default
    time = np.arange(150)[None, :, None] * 0.02
    swing = np.sin(rng.uniform(3, 9, (4, 1, 12)) * time + rng.uniform(0, 6, (4, 1, 12))) * 0.3 / targets.action_scale
    true = gx.set_parameters(model, truth)
    true.opt.iterations, true.opt.ls_iterations = 100, 50  # reality solves its contacts to the end
    states = noisy(model, simulate(true, np.repeat(standing[None], 4, 0), swing, 4, control=control), rng)
    found = gx.identify(system, {"states": states, "actions": swing, "dt": 0.02}, tuple(truth), horizon=10)
    for name, value in truth.items():
        assert abs(found.values[name] - value) < 4 * found.standard_errors[name]
        assert found.values[name] == pytest.approx(value, rel=0.15)


def test_parameters_are_set_as_a_compiler_would():
    """A model compiled with other numbers in its file has the same constants."""

    before = load_model("cart-pole")
    values = {
        "body_mass/cart": 1.4,
        "body_mass/pole": 0.15,
        "dof_damping/slider": 0.8,
        "dof_frictionloss/hinge": 0.2,
        "dof_armature/hinge": 0.05,
        "jnt_stiffness/hinge": 3.0,
        "actuator_gain/push": 1.2,
        "action_delay": 0.02,
    }
    hinge = 'frictionloss="0.2" armature="0.05" stiffness="3"'
    expected = changed_cart_pole('damping="0.8"', hinge)
    expected.actuator_gainprm[0, 0] = 1.2
    changed = gx.set_parameters(before, values)
    names = (
        "body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_M0", "dof_invweight0", "dof_damping",
        "dof_frictionloss", "dof_armature", "jnt_stiffness", "actuator_gainprm", "actuator_acc0",
    )  # fmt: skip
    for name in names:
        np.testing.assert_allclose(getattr(changed, name), getattr(expected, name), rtol=1e-9, atol=1e-12, err_msg=name)
    assert before.body_mass[1] == 1.0


LOGS = {"states": np.zeros((2, 50, 2)), "actions": np.zeros((2, 50, 1)), "dt": 0.02}
LOG = gx.Trajectory("run-7", np.arange(50) * 0.02, np.zeros((50, 2), np.float32), np.zeros((50, 1), np.float32), 1)
WITH_ACTIVATION = """
<mujoco><worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody>
<actuator><general joint="j" dyntype="filter" dynprm="1"/></actuator></mujoco>
"""


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"parameters": ("body_mas/*",)},
            gx.ConfigError,
            "body_mas/.*none of the model's 7 parameters.*body_mass/pole",
        ),
        ({"parameters": "body_mass/*"}, gx.ConfigError, "expected a tuple of patterns"),
        ({"parameters": ()}, gx.ConfigError, "expected patterns such as.*dof_damping/hinge"),
        ({"model": "pendulun"}, gx.DataError, "Nearest: pendulum"),
        ({"model": gx.physics.PendulumSystem()}, gx.ConfigError, "model is PendulumSystem; expected an MJXSystem"),
        ({"model": mujoco.MjModel.from_xml_string(WITH_ACTIVATION)}, gx.ConfigError, "1 activations"),
        ({"model": MJXSystem("pendulum", 0.04)}, gx.DataError, "trajectory 0 has a row every 0.02 s.*0.04 s"),
        ({"model": "cart-pole"}, gx.DataError, "trajectory 0: a state has 2 entries; expected 4"),
        ({"trajectories": {**LOGS, "actions": np.zeros((2, 50, 3))}}, gx.DataError, "3 entries; the model takes 1"),
        ({"trajectories": {**LOGS, "actions": np.zeros((2, 9, 1))}}, gx.DataError, "actions .2, 9, 1.; expected"),
        ({"trajectories": {"states": LOGS["states"]}}, gx.DataError, "no actions, dt"),
        ({"trajectories": []}, gx.DataError, "trajectories are none; expected"),
        ({"horizon": 50}, gx.DataError, "has 50 rows; expected at least 51"),
        ({"horizon": 0}, gx.ConfigError, "horizon=0; expected 1 or more"),
        ({"max_delay": 0.1}, gx.ConfigError, "action_delay is not among the parameters"),
        ({"parameters": ("action_delay",), "max_delay": -1}, gx.ConfigError, "max_delay=-1"),
        ({"noise": [1.0]}, gx.ConfigError, "expected .2,. deviations"),
    ],
)
def test_errors_come_before_compilation(change, error, words):
    settings = {"model": "pendulum", "trajectories": LOGS, "parameters": ("body_mass/*",)} | change
    with pytest.raises(error, match=words):
        gx.identify(settings.pop("model"), settings.pop("trajectories"), **settings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"body_mass/pol": 1.0}, "no parameter 'body_mass/pol'. Nearest: body_mass/pole"),
        ({"body_mass/pole": -1.0}, "body_mass/pole=-1.0; expected a finite number of the sign of 1"),
        ({"dof_damping/hinge": np.nan}, "dof_damping/hinge=nan; expected 0 or more"),
    ],
)
def test_a_value_that_no_model_can_have(values, words):
    with pytest.raises(gx.ConfigError, match=words):
        gx.set_parameters(load_model("pendulum"), values)
