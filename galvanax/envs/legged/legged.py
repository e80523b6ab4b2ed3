"""The base of the legged environments: a robot that is asked to walk at a velocity.

Its rules are unitree_rl_gym's: joint targets around a default pose become torques by PD control in every physics step.
On terrain they are legged_gym's. docs/environments.md says where ours are others, and why.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from galvanax.envs.environment import MJXEnvironment, State, is_broken, where_finite
from galvanax.envs.height_scan import HeightScan
from galvanax.envs.legged.layout import Layout, find_layout, make_torque_motors, match_values
from galvanax.envs.legged.mirror import mirror_image
from galvanax.envs.legged.rewards import CONTACT_FORCE, TERMS, Motion, RewardTerm
from galvanax.envs.legged.settings import (
    Commands,
    Gait,
    ObservationNoise,
    ObservationScales,
    RewardScales,
    Termination,
)
from galvanax.envs.randomization import Randomization, apply
from galvanax.envs.symmetry import Symmetry
from galvanax.envs.terrain import Terrain
from galvanax.envs.vision import Vision
from galvanax.errors import ConfigError
from galvanax.physics import quaternions
from galvanax.physics.contacts import forces_on_bodies, lowest_points, point_motion
from galvanax.physics.models import load_model
from galvanax.physics.quiet_mjx import mjx

_GRAVITY = np.array([0.0, 0.0, -1.0])
_FORWARD = np.array([1.0, 0.0, 0.0])


@dataclasses.dataclass(frozen=True)
class LeggedEnvironment(MJXEnvironment):
    """A robot with a free trunk and one motor per joint; subclasses name its parts.

    An action `a` asks for joint angles `default + action_scale · a`; each physics step applies the torques
    `clip(kp (target - q) - kd q̇, ± limit)`. Observations: `observation_layout`.

    `info` holds `command` (m/s, m/s, rad/s), `heading` (rad), `last_action`, `step` and what else a step needs;
    `metrics` holds each reward term, weighted, as `reward/NAME`, and the tracking errors.

    Attributes:
      action_scale: rad per unit of action.
      clip_actions: actions are clipped at ± this.
      kp: stiffness (N·m/rad) by joint name or part of it.
      kd: damping (N·m·s/rad), likewise.
      initial_height: of the trunk above the ground at the start (m).
      initial_joint_scale: default joint angles are multiplied by a draw from this range at the start.
      initial_velocity: of the trunk at the start, ± (m/s and rad/s).
      commands: what the robot is asked to do.
      rewards: the terms' weights.
      only_positive_rewards: a step's sum is at least 0, but for `termination`.
      tracking_sigma: width of the tracking terms.
      height_target: of the trunk (m).
      soft_limit: the part of a joint's range that is not penalised.
      gait: the stepping clock.
      termination: what counts as a fall.
      scales: of observations.
      noise: on observations.
      privileged: observe a dict, with `privileged_state` (true velocity first, no noise) beside `state`.
      height_scan: heights of the ground around the robot, at the end of the (privileged, if any) observation, or None.
      vision: a depth image by rays, as `depth` in an observation that is a dict then, or None.
      randomization: of the robot's properties, and pushes.
      terrain: the ground.
    """

    trunk: ClassVar[str]
    joints: ClassVar[tuple[str, ...]]
    default_pose: ClassVar[tuple[float, ...]]
    feet: ClassVar[tuple[str, ...]]
    foot_point: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)  # in the foot body's frame (m)
    hip_joints: ClassVar[tuple[int, ...]] = ()
    terminate_on: ClassVar[tuple[str, ...]]
    penalise: ClassVar[tuple[str, ...]] = ()
    observes_lin_vel: ClassVar[bool] = False
    observes_phase: ClassVar[bool] = True
    reward_terms: ClassVar[Mapping[str, RewardTerm]] = TERMS

    action_scale: float = 0.25
    clip_actions: float = 100.0
    kp: dict[str, float] = dataclasses.field(default_factory=dict)
    kd: dict[str, float] = dataclasses.field(default_factory=dict)
    initial_height: float = 1.0
    initial_joint_scale: tuple[float, float] = (0.5, 1.5)
    initial_velocity: float = 0.5
    commands: Commands = Commands()
    rewards: RewardScales = RewardScales()
    only_positive_rewards: bool = True
    tracking_sigma: float = 0.25
    height_target: float = 1.0
    soft_limit: float = 0.9
    gait: Gait = Gait()
    termination: Termination = Termination()
    scales: ObservationScales = ObservationScales()
    noise: ObservationNoise = ObservationNoise()
    privileged: bool = False
    height_scan: HeightScan | None = None
    vision: Vision | None = None
    randomization: Randomization = Randomization()
    terrain: Terrain = Terrain()

    # The robot.

    @functools.cached_property
    def mj_model(self) -> mujoco.MjModel:
        """The robot on its terrain."""
        model = load_model(self.model_name, edit=None if self.terrain.kind == "flat" else self.terrain.add_to)
        make_torque_motors(model)
        self.check_timestep(model)
        return model

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the robot's parts are in the model."""
        return find_layout(
            self.mj_model,
            self.model_name,
            joints=self.joints,
            trunk=self.trunk,
            feet=self.feet,
            fatal=self.terminate_on if self.termination.contact else (),
            penalised=self.penalise if self.rewards.collision else (),
        )

    @functools.cached_property
    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """Stiffness and damping of every joint with a motor. Joints that the action doesn't move get the stiffest."""
        names, count = self.layout.joints, self.layout.controlled
        gains = []
        for field in ("kp", "kd"):
            own = match_values(getattr(self, field), names[:count], f"{type(self).__name__}.{field}")
            gains.append(np.concatenate([own, np.full(len(names) - count, own.max())]))
        return gains[0], gains[1]

    @functools.cached_property
    def reference_pose(self) -> np.ndarray:
        """Default angles (rad) of every joint with a motor; joints that the action doesn't move stay at qpos0."""
        others = self.mj_model.qpos0[self.layout.qpos[self.layout.controlled :]]
        return np.concatenate([self.default_pose, others])

    @property
    def action_size(self) -> int:
        """One entry per controlled joint, in the order of `joints`."""
        return len(self.joints)

    def check(self) -> None:
        """Raises ConfigError or DataError where the model or a setting doesn't fit."""
        super().check()
        _ = self.layout, self.gains
        delay = self.randomization.action_delay
        if delay is not None and delay[1] > self.control_dt:
            raise ConfigError(
                f"Randomization.action_delay={delay} s: expected at most one control step, {self.control_dt} s."
            )
        if self.vision is not None:
            self.vision.check_for_one(self.mj_model, f"{type(self).__name__}.vision")
        unknown = [name for name in vars(self.rewards) if name not in self.reward_terms]
        if unknown:
            raise ConfigError(f"{type(self).__name__}.rewards names {unknown[0]!r}, which is no term of reward_terms.")
        if self.observes_phase and len(self.gait.offset) != len(self.feet):
            raise ConfigError(
                f"{type(self).__name__}.gait.offset has {len(self.gait.offset)} entries; expected {len(self.feet)}, "
                "one for each foot."
            )

    def evaluation(self) -> Self:
        """Without noise, pushes, random properties and a curriculum."""
        return dataclasses.replace(
            self,
            noise=dataclasses.replace(self.noise, level=0.0),
            randomization=Randomization(),
            terrain=dataclasses.replace(self.terrain, curriculum=False),
        )

    # Episodes.

    def reset(self, rng: jax.Array) -> State:
        """A fresh episode: joints, velocity, command, place and properties are random."""
        terrain_rng, drawn_rng, rng = jax.random.split(rng, 3)
        level, column = jax.random.randint(terrain_rng, (2,), 0, jnp.array([self.terrain.levels, self.terrain.columns]))
        if self.terrain.curriculum:
            level = jnp.zeros_like(level)
        drawn = self.randomization.draw(self.mjx_model, self.layout.trunk, len(self.layout.joints), drawn_rng)
        return self._start(rng, drawn, level, column)

    def next_episode(self, state: State, rng: jax.Array) -> State:
        """As `reset`, after an episode that ended in `state`: the curriculum goes on from it."""
        level_rng, drawn_rng, rng = jax.random.split(rng, 3)
        info = state.info
        level = info["terrain_level"]
        if self.terrain.kind != "flat" and self.terrain.curriculum:
            walked = jnp.linalg.norm(state.pipeline_state.qpos[:2] - info["origin"][:2])
            commanded = jnp.linalg.norm(info["command"][:2]) * self.episode_length * self.control_dt
            level = self.terrain.next_level(level, walked, commanded, level_rng)
        drawn = info["drawn"]
        if self.randomization.resample == "episode":
            drawn = self.randomization.draw(self.mjx_model, self.layout.trunk, len(self.layout.joints), drawn_rng)
        return self._start(rng, drawn, level, info["terrain_column"])

    def _start(self, rng: jax.Array, drawn: Any, level: jax.Array, column: jax.Array) -> State:
        joint_rng, velocity_rng, command_rng, noise_rng, rng = jax.random.split(rng, 5)
        layout, count = self.layout, self.layout.controlled
        low, high = self.initial_joint_scale
        scale = jax.random.uniform(joint_rng, (count,), minval=low, maxval=high)
        angles = jnp.asarray(self.reference_pose).at[:count].multiply(scale)
        origin = self.terrain.origin(level, column)
        qpos = jnp.asarray(self.mj_model.qpos0, jnp.float32).at[layout.qpos].set(angles)
        qpos = qpos.at[:7].set(jnp.concatenate([origin + jnp.array([0, 0, self.initial_height]), jnp.eye(4)[0]]))
        velocity = jax.random.uniform(velocity_rng, (6,), minval=-1.0) * self.initial_velocity
        data = self.blank_data.replace(qpos=qpos, qvel=jnp.zeros(self.mj_model.nv).at[:6].set(velocity))
        command, heading = self._draw_command(command_rng)
        info = {
            "rng": rng,
            "step": jnp.int32(0),
            "command": command,
            "heading": heading,
            "last_action": jnp.zeros(count),
            "last_joint_vel": jnp.zeros(count),
            "last_loaded": jnp.zeros(len(self.feet)),
            "air_time": jnp.zeros(len(self.feet)),
            "drawn": drawn,
            "terrain_level": level,
            "terrain_column": column,
            "origin": origin,
        }
        info["command"] = self._steer(info, data)
        terms = {f"reward/{name}": jnp.zeros(()) for name in self._active_terms}
        metrics = {**terms, "lin_vel_error": jnp.zeros(()), "ang_vel_error": jnp.zeros(()), "broken": jnp.zeros(())}
        obs = self._observe(data, info, noise_rng)
        return State(data, obs, jnp.zeros(()), jnp.zeros(()), metrics, info)

    def step(self, state: State, action: jax.Array) -> State:
        """One control step."""
        self.check_action(action)
        command_rng, noise_rng, push_rng, rng = jax.random.split(state.info["rng"], 4)
        action = jnp.clip(action, -self.clip_actions, self.clip_actions)
        info = {**state.info, "rng": rng, "step": state.info["step"] + 1}
        model = apply(self.mjx_model, info["drawn"])
        data, torques = self._simulate(model, state.pipeline_state, action, info)
        broken = is_broken(data)

        due = info["step"] % round(self.commands.resampling_time / self.control_dt) == 0
        command, heading = self._draw_command(command_rng)
        info["command"] = jnp.where(due, command, info["command"])
        info["heading"] = jnp.where(due, heading, info["heading"])
        info["command"] = where_finite(self._steer(info, data))

        motion = self._observe_motion(model, data, info, action, torques)
        reward, terms = self._reward(motion)
        loaded = (motion.foot_forces[:, 2] > CONTACT_FORCE).astype(jnp.float32)
        info |= {
            "last_action": action,
            "last_joint_vel": where_finite(motion.joint_vel),
            "last_loaded": loaded,
            "air_time": motion.air_time * (1 - jnp.maximum(loaded, state.info["last_loaded"])),
        }
        data = self._push(data, info["step"], push_rng)
        metrics = {
            **terms,
            "lin_vel_error": jnp.linalg.norm(motion.command[:2] - motion.lin_vel[:2]),
            "ang_vel_error": jnp.abs(motion.command[2] - motion.ang_vel[2]),
        }
        metrics = {**state.metrics, **where_finite(metrics), "broken": broken}
        obs = where_finite(self._observe(data, info, noise_rng))
        return state.replace(
            pipeline_state=data,
            obs=obs,
            reward=where_finite(reward),
            done=jnp.maximum(motion.fallen, broken),
            metrics=metrics,
            info=info,
        )

    # Parts of a step.

    def _simulate(
        self, model: mjx.Model, data: mjx.Data, action: jax.Array, info: dict[str, Any]
    ) -> tuple[mjx.Data, jax.Array]:
        """PD control in every physics step; returns the last step's torques of the controlled joints too."""
        layout, drawn = self.layout, info["drawn"]
        kp, kd = self.gains[0] * drawn.kp_scale, self.gains[1] * drawn.kd_scale
        limits = layout.limits * drawn.torque_scale
        others = jnp.zeros(len(layout.joints) - layout.controlled)
        targets = self.reference_pose + self.action_scale * jnp.concatenate([action, others])
        before = self.reference_pose + self.action_scale * jnp.concatenate([info["last_action"], others])
        delay = jnp.round(drawn.action_delay / self.sim_dt)

        def substep(data: mjx.Data, index: jax.Array) -> tuple[mjx.Data, jax.Array]:
            target = jnp.where(index < delay, before, targets)
            torque = kp * (target - data.qpos[layout.qpos]) - kd * data.qvel[layout.qvel]
            torque = jnp.clip(torque, -limits, limits)
            return mjx.step(model, data.replace(ctrl=torque[layout.torque_of] / layout.gears)), torque

        data, torques = jax.lax.scan(substep, data, jnp.arange(self.n_substeps))
        return data, torques[-1, : layout.controlled]

    def _observe_motion(
        self, model: mjx.Model, data: mjx.Data, info: dict[str, Any], action: jax.Array, torques: jax.Array
    ) -> Motion:
        layout, count = self.layout, self.layout.controlled
        lin_vel, ang_vel, gravity = trunk_motion(data)
        forces = forces_on_bodies(model, data, layout.feet)
        feet, foot_velocities = point_motion(model, data, layout.feet, self.foot_point)
        loaded = jnp.maximum((forces[:, 2] > CONTACT_FORCE).astype(jnp.float32), info["last_loaded"])
        middle, half = layout.ranges[:count].mean(1), np.diff(layout.ranges[:count])[:, 0] / 2 * self.soft_limit
        return Motion(
            lin_vel=lin_vel,
            ang_vel=ang_vel,
            gravity=gravity,
            height=data.qpos[2] - self.terrain.height_at(data.qpos[:2]),
            joint_pos=data.qpos[layout.qpos[:count]],
            default_joint_pos=jnp.asarray(self.default_pose),
            soft_limits=jnp.stack([middle - half, middle + half], axis=-1),
            joint_vel=data.qvel[layout.qvel[:count]],
            last_joint_vel=info["last_joint_vel"],
            torques=torques,
            action=action,
            last_action=info["last_action"],
            command=info["command"],
            foot_forces=forces,
            foot_heights=feet[:, 2] - self.terrain.height_at(feet[:, :2]),
            foot_velocities=foot_velocities,
            first_contact=(info["air_time"] > 0) * loaded,
            air_time=info["air_time"] + self.control_dt,
            stance=(self._phases(info["step"]) < self.gait.stance).astype(jnp.float32),
            collisions=sum((self._touches(data, geoms) for geoms in layout.penalised), start=jnp.zeros(())),
            fallen=self._fallen(data, gravity),
            control_dt=self.control_dt,
            tracking_sigma=self.tracking_sigma,
            height_target=self.height_target,
            swing_height=self.gait.swing_height,
            hip_joints=self.hip_joints,
        )

    def _reward(self, motion: Motion) -> tuple[jax.Array, dict[str, jax.Array]]:
        terms = {
            name: self.reward_terms[name](motion) * getattr(self.rewards, name) * self.control_dt
            for name in self._active_terms
        }
        last = terms.get("termination", jnp.zeros(()))
        total = sum(terms.values(), start=jnp.zeros(())) - last
        if self.only_positive_rewards:
            total = jnp.maximum(total, 0)
        return total + last, {f"reward/{name}": value for name, value in terms.items()}

    @property
    def _active_terms(self) -> list[str]:
        return [name for name, scale in dataclasses.asdict(self.rewards).items() if scale]

    def _fallen(self, data: mjx.Data, gravity: jax.Array) -> jax.Array:
        roll, pitch = jnp.arctan2(-gravity[1], -gravity[2]), jnp.arcsin(jnp.clip(gravity[0], -1, 1))
        fallen = (jnp.abs(roll) > self.termination.roll) | (jnp.abs(pitch) > self.termination.pitch)
        fallen |= ~self.terrain.contains(data.qpos[:2])
        return jnp.maximum(fallen.astype(jnp.float32), self._touches(data, self.layout.fatal))

    def _touches(self, data: mjx.Data, geoms: np.ndarray) -> jax.Array:
        """1.0 where any of the geoms reaches the ground. Only feet push back, so this is geometry, not force."""
        points = lowest_points(self.mj_model, data, geoms)
        return jnp.any(points[:, 2] < self.terrain.height_at(points[:, :2])).astype(jnp.float32)

    def _draw_command(self, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        ranges = jnp.array([self.commands.lin_vel_x, self.commands.lin_vel_y, self.commands.ang_vel_yaw])
        velocity_rng, heading_rng = jax.random.split(rng)
        command = jax.random.uniform(velocity_rng, (3,), minval=ranges[:, 0], maxval=ranges[:, 1])
        moving = jnp.linalg.norm(command[:2]) > self.commands.dead_zone
        heading = jax.random.uniform(heading_rng, minval=-jnp.pi, maxval=jnp.pi)
        return command.at[:2].multiply(moving), heading

    def _steer(self, info: dict[str, Any], data: mjx.Data) -> jax.Array:
        """The command, its yaw rate made from the heading where that is what is asked."""
        if not self.commands.heading:
            return info["command"]
        forward = quaternions.rotate(data.qpos[3:7], jnp.asarray(_FORWARD))
        error = info["heading"] - jnp.arctan2(forward[1], forward[0])
        error = jnp.mod(error + jnp.pi, 2 * jnp.pi) - jnp.pi
        return info["command"].at[2].set(jnp.clip(0.5 * error, *self.commands.ang_vel_yaw))

    def _push(self, data: mjx.Data, step: jax.Array, rng: jax.Array) -> mjx.Data:
        """A shove from time to time: the trunk has another velocity at once."""
        settings = self.randomization
        if settings.push_interval is None:
            return data
        due = step % round(settings.push_interval / self.control_dt) == 0
        velocity = data.qvel[:6]
        return data.replace(qvel=data.qvel.at[:6].set(jnp.where(due, settings.push(velocity, rng), velocity)))

    def _phases(self, step: jax.Array) -> jax.Array:
        offsets = self.gait.offset if len(self.gait.offset) == len(self.feet) else (0.0,) * len(self.feet)
        return jnp.mod(step * self.control_dt / self.gait.period + jnp.asarray(offsets), 1.0)

    # Observations.

    @functools.cached_property
    def observation_layout(self) -> dict[str, slice]:
        """Where each quantity is in the observation (in `state`, where it is a dict)."""
        sizes = {"lin_vel": 3} if self.observes_lin_vel else {}
        count = len(self.joints)
        sizes |= {
            "ang_vel": 3,
            "gravity": 3,
            "command": 3,
            "joint_pos": count,
            "joint_vel": count,
            "last_action": count,
        }
        sizes |= {"phase": 2} if self.observes_phase else {}
        if self.height_scan is not None and not self.privileged:
            sizes["height_scan"] = self.height_scan.size
        ends = np.cumsum(list(sizes.values()))
        return {name: slice(int(end - size), int(end)) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    def _observe(self, data: mjx.Data, info: dict[str, Any], rng: jax.Array) -> Any:
        scales, layout, count = self.scales, self.layout, self.layout.controlled
        lin_vel, ang_vel, gravity = trunk_motion(data)
        phase = 2 * jnp.pi * self._phases(info["step"])[0]
        parts = {
            "lin_vel": lin_vel * scales.lin_vel,
            "ang_vel": ang_vel * scales.ang_vel,
            "gravity": gravity,
            "command": info["command"] * jnp.array([scales.lin_vel, scales.lin_vel, scales.ang_vel]),
            "joint_pos": (data.qpos[layout.qpos[:count]] - jnp.asarray(self.default_pose)) * scales.joint_pos,
            "joint_vel": data.qvel[layout.qvel[:count]] * scales.joint_vel,
            "last_action": info["last_action"],
            "phase": jnp.stack([jnp.sin(phase), jnp.cos(phase)]),
        }
        if self.height_scan is not None:
            parts["height_scan"] = self.height_scan.scan(self.terrain, data.qpos[:3], _yaw(data))
        clean = jnp.concatenate([parts[name] for name in self.observation_layout])
        obs = clean
        if self.noise.level:
            obs = clean + jax.random.uniform(rng, clean.shape, minval=-1.0) * self._noise_amplitudes
        obs = jnp.clip(obs, -scales.clip, scales.clip)
        if not self.privileged and self.vision is None:
            return obs
        together = {"state": obs}
        if self.vision is not None:
            together["depth"] = self.vision.depth_now(self.mjx_model, data)
        if not self.privileged:
            return together
        more = [parts["lin_vel"], clean] + ([parts["height_scan"]] if self.height_scan is not None else [])
        return together | {"privileged_state": jnp.clip(jnp.concatenate(more), -scales.clip, scales.clip)}

    @functools.cached_property
    def symmetry(self) -> Symmetry:
        """The robot mirrored at its sagittal plane. Raises ConfigError where the gait is not symmetric."""
        if self.observes_phase and self.gait.offset != (0.0, 0.5):
            raise ConfigError(
                f"{type(self).__name__}.gait.offset={self.gait.offset} is not symmetric; expected (0, 0.5)."
            )
        columns = 0 if self.height_scan is None else int(self.height_scan.y[2])
        return mirror_image(self.joints, self.mj_model, self.observation_layout, columns)

    @functools.cached_property
    def _noise_amplitudes(self) -> np.ndarray:
        noise, scales = self.noise, self.scales
        amplitudes = np.zeros(max(part.stop for part in self.observation_layout.values()))
        for name, amplitude in (
            ("lin_vel", noise.lin_vel * scales.lin_vel),
            ("ang_vel", noise.ang_vel * scales.ang_vel),
            ("gravity", noise.gravity),
            ("joint_pos", noise.joint_pos * scales.joint_pos),
            ("joint_vel", noise.joint_vel * scales.joint_vel),
        ):
            if name in self.observation_layout:
                amplitudes[self.observation_layout[name]] = amplitude * noise.level
        return amplitudes


def trunk_motion(data: mjx.Data) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Linear velocity (m/s), angular velocity (rad/s) and gravity's direction, each in the trunk's frame `(3,)`.

    A free joint's angular velocity is in the body's frame already; its linear velocity is in the world's.
    """
    into_trunk = quaternions.conjugate(quaternions.normalize(data.qpos[3:7]))
    lin_vel = quaternions.rotate(into_trunk, data.qvel[:3])
    return lin_vel, data.qvel[3:6], quaternions.rotate(into_trunk, jnp.asarray(_GRAVITY))


def _yaw(data: mjx.Data) -> jax.Array:
    forward = quaternions.rotate(data.qpos[3:7], jnp.asarray(_FORWARD))
    return jnp.arctan2(forward[1], forward[0])
