"""Domain randomisation: other physics for every environment, so that a policy isn't bound to one robot's numbers."""

import dataclasses
import math
import numbers
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from galvanax.errors import ConfigError, nearest
from galvanax.physics.derived_constants import refresh_constants
from galvanax.physics.quiet_mjx import mjx

Range = tuple[float, float]
Resample = Literal["episode", "environment"]

# What each quantity folds into the key: its own number, so that none depends on which others are on. Never renumber:
# seeds would mean other robots.
_STREAMS = {
    "friction": 0,
    "added_trunk_mass": 1,
    "link_mass_scale": 2,
    "com_offset": 3,
    "kp_scale": 4,
    "kd_scale": 5,
    "torque_scale": 6,
    "armature_scale": 7,
    "action_delay": 8,
    "push_velocity": 9,
    "push_angular": 10,
}
_SIGNED = ("added_trunk_mass", "com_offset")
_POSITIVE = ("friction", "link_mass_scale", "push_interval")  # all others may be 0
_SCALARS = ("push_interval", "push_velocity", "push_angular")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """One environment's draw: a pytree, with a leading axis under `vmap`.

    Attributes:
      model: the leaves of `mjx.Model` that differ, by name, derived constants among them; `{}` where none does.
      kp_scale: `(num_joints,)`, a factor on each joint's stiffness; ones where off, as with the next two.
      kd_scale: `(num_joints,)`, a factor on each joint's damping.
      torque_scale: `(num_joints,)`, a factor on each motor's torque.
      action_delay: seconds (s) by which actions come late; 0 where off.
    """

    model: dict[str, jax.Array]
    kp_scale: jax.Array
    kd_scale: jax.Array
    torque_scale: jax.Array
    action_delay: jax.Array


@dataclasses.dataclass(frozen=True)
class Randomization:
    """What is drawn, uniformly from `(low, high)`. None is off, costs nothing, and is the default of everything.

    Attributes:
      friction: sliding friction coefficient of the ground's contacts, one number per draw, in place of the model's.
      added_trunk_mass: kg onto the trunk; its inertia grows in proportion.
      link_mass_scale: a factor on the mass and inertia of each link, drawn for each on its own.
      com_offset: m by which the trunk's centre of mass moves, along each of the body's axes.
      kp_scale: a factor on the stiffness of each joint's controller, for each on its own.
      kd_scale: a factor on its damping.
      torque_scale: a factor on each motor's torque, its strength.
      armature_scale: a factor on each joint's armature.
      action_delay: s between an action and its effect.
      push_interval: s between pushes.
      push_velocity: m/s; a push sets the base's velocity along x and y to a draw, uniform in ± this.
      push_angular: rad/s; a push sets its angular velocity about each axis to a draw, uniform in ± this.
      resample: draw at every "episode", or once per "environment" and keep that through all its episodes. `draw`
        doesn't look at it: it is for whoever resets.
    """

    friction: Range | None = None
    added_trunk_mass: Range | None = None
    link_mass_scale: Range | None = None
    com_offset: Range | None = None
    kp_scale: Range | None = None
    kd_scale: Range | None = None
    torque_scale: Range | None = None
    armature_scale: Range | None = None
    action_delay: Range | None = None
    push_interval: float | None = None
    push_velocity: float | None = None
    push_angular: float | None = None
    resample: Resample = "episode"

    def __post_init__(self) -> None:
        for name in self._active():
            _check(name, getattr(self, name))
            if name not in _SCALARS:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        if self.resample not in get_args(Resample):
            known = nearest(str(self.resample), get_args(Resample))
            raise ConfigError(f"Randomization.resample={self.resample!r}: expected 'episode' or 'environment'.{known}")
        pushes = self.push_velocity is not None or self.push_angular is not None
        if (self.push_interval is not None) != pushes:
            raise ConfigError(
                f"Randomization.push_interval={self.push_interval} (s) with push_velocity={self.push_velocity} (m/s) "
                f"and push_angular={self.push_angular} (rad/s): expected an interval and at least one of the two, or "
                "None for all three."
            )

    @property
    def is_off(self) -> bool:
        """Whether nothing is randomised, pushes included."""
        return not self._active()

    def draw(self, model: mjx.Model, trunk: int, num_joints: int, rng: jax.Array) -> Drawn:
        """Draws for one environment; `vmap` over `rng` for many.

        The same key draws the same numbers for a quantity whichever others are on.

        Args:
          model: the model as it is without randomisation; closed over rather than traced, it is checked too.
          trunk: id of the trunk's body.
          num_joints: how many joints are controlled.
          rng: a key.

        Raises:
          ConfigError: the trunk is no moving body, or could be left with no mass; or friction is on where nothing can
            touch the ground.
        """

        def uniform(name: str, shape: tuple[int, ...] = ()) -> jax.Array:
            low, high = getattr(self, name)
            return jax.random.uniform(jax.random.fold_in(rng, _STREAMS[name]), shape, minval=low, maxval=high)

        def scale(name: str) -> jax.Array:
            return jnp.ones(num_joints) if getattr(self, name) is None else uniform(name, (num_joints,))

        if not 0 < trunk < model.nbody:
            raise ConfigError(f"trunk={trunk} is no moving body of this model; expected 1 to {model.nbody - 1}.")
        self._check_trunk_mass(model, trunk)

        changed: dict[str, jax.Array] = {}
        if self.link_mass_scale is not None or self.added_trunk_mass is not None:
            mass = model.body_mass
            if self.link_mass_scale is not None:
                mass = mass * uniform("link_mass_scale", (model.nbody,))
            if self.added_trunk_mass is not None:
                mass = mass.at[trunk].add(uniform("added_trunk_mass"))
            growth = mass / jnp.where(model.body_mass > 0, model.body_mass, 1.0)  # the world has no mass
            changed |= {"body_mass": mass, "body_inertia": model.body_inertia * growth[:, None]}
        if self.com_offset is not None:
            changed["body_ipos"] = model.body_ipos.at[trunk].add(uniform("com_offset", (3,)))
        if self.armature_scale is not None:
            factors = uniform("armature_scale", (model.njnt,))
            changed["dof_armature"] = model.dof_armature * factors[model.dof_jntid]
        if changed:
            changed |= _derived(model, changed)
        if self.friction is not None:
            changed |= _with_friction(model, uniform("friction"))
        return Drawn(
            model=changed,
            kp_scale=scale("kp_scale"),
            kd_scale=scale("kd_scale"),
            torque_scale=scale("torque_scale"),
            action_delay=jnp.zeros(()) if self.action_delay is None else uniform("action_delay"),
        )

    def push(self, velocity: jax.Array, rng: jax.Array) -> jax.Array:
        """A floating base's velocity after a push: a draw, whatever it was before, as in legged_gym.

        Args:
          velocity: before, `(6,)`: m/s along x, y, z, then rad/s about them.
          rng: a key.

        Returns:
          `(6,)`; the vertical velocity, and whatever has no bound, stays.
        """
        velocity = jnp.asarray(velocity)
        for name, rows in (("push_velocity", slice(0, 2)), ("push_angular", slice(3, 6))):
            bound = getattr(self, name)
            if bound is not None:
                key = jax.random.fold_in(rng, _STREAMS[name])
                draw = jax.random.uniform(key, velocity[rows].shape, minval=-bound, maxval=bound)
                velocity = velocity.at[rows].set(draw)
        return velocity

    def _active(self) -> list[str]:
        names = [field.name for field in dataclasses.fields(self) if field.name != "resample"]
        return [name for name in names if getattr(self, name) is not None]

    def _check_trunk_mass(self, model: mjx.Model, trunk: int) -> None:
        if self.added_trunk_mass is None or isinstance(model.body_mass, jax.core.Tracer):
            return
        mass = float(jax.device_get(model.body_mass)[trunk])
        least = mass * (1.0 if self.link_mass_scale is None else self.link_mass_scale[0])
        if least + self.added_trunk_mass[0] <= 0:
            raise ConfigError(
                f"Randomization.added_trunk_mass={self.added_trunk_mass} kg can leave the trunk (body {trunk}) no "
                f"mass: without it, it weighs {least:g} kg or more. Expected low > {-least:g}."
            )


def apply(model: mjx.Model, drawn: Drawn) -> mjx.Model:
    """The model with the drawn leaves in place of its own. The scales and the delay are for the controller to apply."""
    return model.replace(**drawn.model) if drawn.model else model


def _derived(model: mjx.Model, changed: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The constants that follow from other masses, centres of mass and armatures."""
    fresh = refresh_constants(model.replace(**changed))
    names = ["dof_M0", "body_invweight0", "dof_invweight0"]
    if "body_mass" in changed:
        names.append("body_subtreemass")
    if model.ntendon:
        names.append("tendon_invweight0")
    if model.nu:
        names.append("actuator_acc0")
    return {name: getattr(fresh, name) for name in names}


def _with_friction(model: mjx.Model, friction: jax.Array) -> dict[str, jax.Array]:
    """The leaves that hold the sliding friction of contacts with the ground, which is whatever can't move."""
    static = model.body_weldid[model.geom_bodyid] == 0
    pairs = static[model.pair_geom1] | static[model.pair_geom2]
    # Without pairs, MuJoCo takes the larger friction of two geoms: the ground and all that may touch it must agree.
    geoms = (model.geom_contype | model.geom_conaffinity) != 0
    changed = {}
    if pairs.any():
        # The two tangents; torsion and rolling stay.
        rows = np.flatnonzero(pairs)
        changed["pair_friction"] = model.pair_friction.at[rows, :2].set(friction)
    if geoms.any():
        changed["geom_friction"] = model.geom_friction.at[np.flatnonzero(geoms), 0].set(friction)
    if not changed:
        raise ConfigError(
            "Randomization.friction is on, but nothing in this model touches the ground: it has no contact pair with a "
            "static geom and no geom with a contype or conaffinity. Expected friction=None."
        )
    return changed


def _check(name: str, value: Any) -> None:
    """Raises ConfigError for a range, or a number, that can't be meant."""
    scalar = name in _SCALARS
    bound = "" if name in _SIGNED else " > 0" if name in _POSITIVE else " >= 0"
    form = f"a finite number{bound}" if scalar else f"(low, high), two finite numbers{bound} with low <= high"
    values = (value,) if scalar else tuple(value) if isinstance(value, tuple | list) else ()
    real = all(isinstance(entry, numbers.Real) and math.isfinite(entry) for entry in values)
    if len(values) != (1 if scalar else 2) or not real:
        raise ConfigError(f"Randomization.{name}={value!r}: expected {form}, or None for off.")
    if (name in _POSITIVE and min(values) <= 0) or (name not in _SIGNED and min(values) < 0):
        raise ConfigError(f"Randomization.{name}={value!r}: expected {form}, or None for off.")
    if values[0] > values[-1]:
        raise ConfigError(f"Randomization.{name}={value!r}: expected {form}. Nearest: {(values[1], values[0])}.")
