"""Proximal policy optimisation as a task: one training step is one iteration, collecting and learning."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

from galvanax.datamodules.environment import EnvironmentDataModule
from galvanax.envs.auto_reset import AutoReset
from galvanax.envs.symmetry import Symmetry
from galvanax.errors import ConfigError, nearest
from galvanax.networks.actor_critic import ActorCritic
from galvanax.networks.depth_encoder import Sight
from galvanax.rendering.trajectory_npz import MotionClip
from galvanax.settings import check_choice, check_counts, check_ranges, check_widths
from galvanax.tasks.gae import generalized_advantages
from galvanax.tasks.policy_rollout import record_motion
from galvanax.tasks.ppo_loss import LossWeights, Minibatch, mirror_minibatch, ppo_loss
from galvanax.tasks.ppo_rollout import Transitions, collect, episode
from galvanax.tasks.ppo_vision import Seers, check_judged, depth_of, who_sees
from galvanax.tasks.seen_environment import as_seen, as_seen_by
from galvanax.tasks.task import Metrics, Task
from galvanax.trainer.data_axis import (
    DATA,
    ROWS,
    WHOLE,
    data_shards,
    is_local,
    mean_over_devices,
    over_data_axis,
    sum_over_devices,
)
from galvanax.trainer.state import Arrays, TrainState

if TYPE_CHECKING:
    from galvanax.datamodules.datamodule import DataModule

Schedule = Literal["constant", "linear", "adaptive"]
SymmetryUse = Literal["none", "augment", "loss"]

# Environments are shuffled within this many groups, so that a minibatch is the same on 1, 2, 4 and 8 devices.
_GROUPS = 8

# Actions are meant for [-1, 1]: an environment that breaks under larger ones than this is not to blame.
_WILD = 1e3

# What `bad_environment` says where it is the policy that broke.
_POLICY = -2.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOCarry:
    """What an iteration hands to the next, in the train state.

    Attributes:
      envs: the environments' states `(num_envs, ...)`.
      memory: the policy's `(num_envs, memory_size)`.
      episode_return: mean over the episodes that ended in the last iteration in which any did.
      episode_length: likewise, control steps.
    """

    envs: Any
    memory: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


@dataclasses.dataclass(frozen=True)
class PPOTask(Task[ActorCritic]):
    """PPO (Schulman et al., 2017). Give it an `EnvironmentDataModule`.

    One step of the Trainer is one iteration: `unroll_length` control steps in every environment, then `num_epochs`
    passes over them in `num_minibatches` parts. `max_steps` counts iterations.

    Attributes:
      unroll_length: control steps per environment and iteration.
      num_epochs: passes over each rollout.
      num_minibatches: optimizer steps a pass; divides `num_envs`.
      learning_rate: of Adam; the first one, where it is scheduled.
      learning_rate_schedule: `"constant"`, `"linear"` (to 0 at the run's end), or `"adaptive"`: divided by 1.5 when the
        policy moved by more than twice `desired_kl`, times 1.5 when by less than half of it.
      desired_kl: for the adaptive rate.
      discount: γ per control step.
      gae_lambda: λ of the advantage estimate.
      clip: of the probability ratio, and of the value's change.
      clip_value: whether the value loss is clipped too.
      value_coef: weight of the value loss, a mean square: rsl_rl's `value_loss_coef`, half of brax's `vf_coefficient`,
        whose default, 0.5, this one's is.
      entropy_coef: weight of the entropy bonus.
      final_entropy_coef: what it goes to, linearly, by the run's end; by default it stays.
      reward_scaling: rewards are multiplied by it for learning, not in what is reported.
      normalize_observations: by running statistics, which are saved with the weights.
      policy_hidden: widths of the policy's layers.
      value_hidden: widths of the value function's layers.
      activation: a function of `flax.nnx`.
      distribution: `"tanh_normal"` (actions in (-1, 1)) or `"normal"` (unbounded).
      initial_std: the policy's deviation at the start, for `"normal"`. It never gets below 1e-6.
      memory_size: units of a GRU in the policy, 0 for none.
      symmetry: use the robot's mirror symmetry: `"augment"` the data, add a `"loss"`, or not. The environment must
        have a `symmetry`.
      symmetry_coef: weight of the mirror loss.
      vision: which networks see `obs["depth"]`, each by convolutions of its own: `"actor"`, `"critic"`, `"both"` or
        `"none"`. By default (`"auto"`) the actor, and the critic where it has no `privileged_state`.
      vision_channels: of each convolution, 3x3 with stride 2.
      vision_features: what an image becomes, beside the other observations.
      depth_range: the depth (m) that counts as far; by default the `max_distance` of the environment's `vision`.
      observation_size: filled in by `setup`.
      action_size: filled in by `setup`.
      depth_shape: filled in by `setup`.
      depth_far: filled in by `setup`.
    """

    totals: ClassVar[tuple[str, ...]] = ("env_steps", "episodes")

    unroll_length: int = 20
    num_epochs: int = 4
    num_minibatches: int = 8
    learning_rate: float = 3e-4
    learning_rate_schedule: Schedule = "constant"
    desired_kl: float = 0.01
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    clip_value: bool = False
    value_coef: float = 0.25
    entropy_coef: float = 0.01
    final_entropy_coef: float | None = None
    reward_scaling: float = 1.0
    normalize_observations: bool = True
    policy_hidden: tuple[int, ...] = (128, 128)
    value_hidden: tuple[int, ...] = (128, 128)
    activation: str = "swish"
    distribution: Literal["tanh_normal", "normal"] = "tanh_normal"
    initial_std: float = 1.0
    memory_size: int = 0
    symmetry: SymmetryUse = "none"
    symmetry_coef: float = 0.5
    vision: Seers = "auto"
    vision_channels: tuple[int, ...] = (16, 32)
    vision_features: int = 64
    depth_range: float | None = None
    observation_size: tyro.conf.Suppress[dict[str, int]] = dataclasses.field(default_factory=dict)
    action_size: tyro.conf.Suppress[int] = 0
    depth_shape: tyro.conf.Suppress[tuple[int, ...]] = ()
    depth_far: tyro.conf.Suppress[float] = 0.0
    # What `setup` takes from the data module: no hyperparameter, so it is neither compared nor stored.
    environments: tyro.conf.Suppress[Any] = dataclasses.field(
        default=None, repr=False, compare=False, metadata={"stored": False}
    )

    def setup(self, datamodule: "DataModule") -> "PPOTask":
        """Takes environments and sizes from the data module.

        Raises:
          ConfigError: the data module has no environment, or a setting doesn't fit it.
        """
        if not isinstance(datamodule, EnvironmentDataModule):
            raise ConfigError(f"PPOTask needs an EnvironmentDataModule, not a {type(datamodule).__name__}.")
        env = datamodule.train_env
        self._check_settings()
        if datamodule.num_envs % self.num_minibatches:
            near = -(-datamodule.num_envs // self.num_minibatches) * self.num_minibatches
            raise ConfigError(
                f"EnvironmentDataModule.num_envs={datamodule.num_envs} is no multiple of PPOTask.num_minibatches="
                f"{self.num_minibatches}. Nearest: {near}."
            )
        sizes = _observation_sizes(env)
        depth_shape, depth_far = depth_of(env, self.vision, self.depth_range)
        check_judged(datamodule.eval_env, depth_shape)
        if self.symmetry != "none":
            if getattr(env, "symmetry", None) is None:
                raise ConfigError(
                    f'PPOTask.symmetry={self.symmetry!r}: {type(env).__name__} has no `symmetry`; "none".'
                )
            if self.memory_size:
                raise ConfigError('PPOTask.symmetry needs a policy without memory: memory_size=0, or symmetry="none".')
            if "actor" in who_sees(self.vision, sizes, depth_shape):
                raise ConfigError(
                    f"PPOTask.symmetry={self.symmetry!r} needs an actor that doesn't see: an image's mirror image is "
                    'not known. vision="critic" or "none", or symmetry="none".'
                )
        check_counts(env, "action_size")
        task = dataclasses.replace(
            self,
            observation_size=sizes,
            action_size=env.action_size,
            depth_shape=depth_shape,
            depth_far=depth_far,
        )
        seen = as_seen(env, task._sight_of("actor") or task._sight_of("critic"))
        training = AutoReset(seen, datamodule.max_episode_length, stagger=True)
        return dataclasses.replace(task, environments=(training, datamodule.eval_env, datamodule.num_envs))

    def build_model(self, rngs: nnx.Rngs) -> ActorCritic:
        """Policy, value function and normalisers."""
        return ActorCritic(
            self.observation_size,
            self.action_size,
            policy_hidden=self.policy_hidden,
            value_hidden=self.value_hidden,
            activation=self.activation,
            distribution=self.distribution,
            initial_std=self.initial_std,
            memory_size=self.memory_size,
            normalize=self.normalize_observations,
            actor_sight=self._sight_of("actor"),
            critic_sight=self._sight_of("critic"),
            rngs=rngs,
        )

    def _sight_of(self, who: str) -> Sight | None:
        if who not in who_sees(self.vision, self.observation_size, self.depth_shape):
            return None
        height, width = self.depth_shape
        return Sight((height, width), self.depth_far, tuple(self.vision_channels), self.vision_features)

    def build_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Adam. Its rate and the entropy bonus's weight are in its state, where schedules and `adapt_rate` set them."""
        updates = num_steps * self.num_epochs * self.num_minibatches
        final = self.entropy_coef if self.final_entropy_coef is None else self.final_entropy_coef
        linear = self.learning_rate_schedule == "linear"
        rate = optax.linear_schedule(self.learning_rate, 0.0, updates) if linear else self.learning_rate
        entropy = optax.linear_schedule(self.entropy_coef, final, updates)
        return optax.inject_hyperparams(lambda learning_rate, entropy_coef: optax.adam(learning_rate))(
            learning_rate=rate, entropy_coef=entropy
        )

    def init_carry(self, rng: jax.Array, datamodule: "DataModule") -> PPOCarry:
        """Every environment at the start of an episode of its own."""
        envs, _, num_envs = self.environments
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(num_envs))
        zero = jnp.zeros(())
        return PPOCarry(over_data_axis(envs.reset)(keys), jnp.zeros((num_envs, self.memory_size)), zero, zero)

    def carry_specs(self, carry: PPOCarry) -> Any:
        """Each device has environments of its own."""
        split: dict[str, Any] = {"envs": ROWS, "memory": ROWS, "episode_return": WHOLE, "episode_length": WHOLE}
        return dataclasses.replace(carry, **split)

    def train_step(self, state: TrainState, batch: Any, rng: jax.Array) -> tuple[TrainState, Metrics]:
        """One iteration: collect, estimate advantages, learn; on each device with the environments that it has."""
        self._check_devices(data_shards())
        placed = jax.tree.map(lambda _: WHOLE, state).replace(carry=self.carry_specs(state.carry))
        return over_data_axis(self._iteration, (placed, ROWS, WHOLE), (placed, WHOLE))(state, batch, rng)

    def _iteration(self, state: TrainState, batch: Any, rng: jax.Array) -> tuple[TrainState, Metrics]:
        collect_rng, learn_rng = jax.random.split(rng)
        model, carry = state.model(), state.carry
        envs, memory, rollout = collect(
            self.environments[0], model, carry.envs, carry.memory, batch["env"], collect_rng, self.unroll_length
        )
        data = self._learning_data(rollout, carry.memory)
        state, metrics = self._learn(state, data, batch["env"], learn_rng)

        model.update_statistics(rollout.obs, DATA if is_local() else None)
        ended, finished = _finished(rollout, carry)
        carry = PPOCarry(envs, memory, *finished)
        means = {"reward": rollout.reward, **{f"env/{name}": value for name, value in rollout.metrics.items()}}
        metrics |= mean_over_devices(jax.tree.map(jnp.mean, means)) | {
            "episode_return": carry.episode_return,
            "episode_length": carry.episode_length,
            "episodes": ended,
            "env_steps": jnp.float32(self.unroll_length * self.environments[2]),
            "explained_variance": _explained_variance(rollout.value, data.target),
            "bad_environment": _first_bad(rollout, envs.obs, batch["env"]),
        }
        variables = state.definition.split(model)[1]
        return state.replace(variables=variables, carry=carry), metrics

    def evaluate(self, model: ActorCritic, batch: Any, rng: jax.Array) -> Metrics:
        """One whole episode of the deterministic policy in the evaluation environment, for each example."""
        training, env, _ = self.environments
        return episode(
            as_seen_by(env, model), model, jax.random.fold_in(rng, batch["episode"][0]), training.episode_length
        )

    def predict(self, model: ActorCritic, batch: Any, rng: jax.Array) -> jax.Array:
        """The deterministic action `(batch, action_size)` at each observation of the batch; a memory starts empty."""
        leaf = jax.tree.leaves(batch)[0]
        return model.act(batch, model.initial_memory(leaf.shape[0]))[0].mode()

    def record(self, model: ActorCritic, datamodule: "DataModule", num_steps: int) -> MotionClip:
        """An episode of the deterministic policy in the evaluation environment, the same start each time.

        Args:
          model: the policy.
          datamodule: the run's.
          num_steps: control steps, at most; no more than an episode has.

        Raises:
          ConfigError: the environment has no MuJoCo model.
        """
        datamodule.setup()
        task = self if self.environments is not None else self.setup(datamodule)
        training, env, _ = task.environments
        num_steps = min(num_steps, training.episode_length)
        return record_motion(model, env, num_steps=num_steps, rng=jax.random.key(0))

    def explain_non_finite(self, metrics: Mapping[str, float]) -> str:
        """Where a NaN came from."""
        env = metrics.get("bad_environment", -1.0)
        lower = ["the learning rate"] + ([f"reward_scaling={self.reward_scaling:g}"] if self.reward_scaling > 1 else [])
        terms = [name for name, value in metrics.items() if name.startswith("env/") and value != value]
        if env >= 0:
            return (
                f"Environment {int(env)} gave an observation or reward that is not finite"
                + (f"; so did its {', '.join(terms)}" if terms else "")
                + ". Look at its physics (timestep, solver iterations) and reward."
            )
        if env == _POLICY:
            if self.distribution == "normal":
                lower += [f"initial_std={self.initial_std:g}", f"entropy_coef={self.entropy_coef:g}"]
            return (
                "All observations and rewards were finite until the policy's actions were not, or were beyond "
                f"{_WILD:g} ([-1, 1] is meant): lower {', '.join(lower)}, or clip the gradients."
            )
        return f"All observations and rewards were finite: lower {', '.join(lower)}, or clip the gradients."

    def _check_settings(self) -> None:
        check_counts(self, "unroll_length", "num_epochs", "num_minibatches", "vision_features")
        check_counts(self, "memory_size", least=0)
        check_widths(self, "policy_hidden", "value_hidden", "vision_channels")
        check_ranges(
            self,
            learning_rate="[0, inf)",
            discount="(0, 1]",
            gae_lambda="[0, 1]",
            clip="(0, inf]",
            value_coef="[0, inf)",
            entropy_coef="(-inf, inf)",
            final_entropy_coef="(-inf, inf)",
            reward_scaling="(-inf, inf)",
            symmetry_coef="[0, inf)",
            depth_range="(0, inf)",
        )
        if self.reward_scaling == 0:
            raise ConfigError("PPOTask.reward_scaling=0: nothing would be learned; expected another number, such as 1.")
        if self.learning_rate_schedule == "adaptive" and not 0 < self.desired_kl < math.inf:
            raise ConfigError(f"PPOTask.desired_kl={self.desired_kl}: expected a number in (0, inf), such as 0.01.")
        check_choice(self, "learning_rate_schedule", get_args(Schedule))
        check_choice(self, "symmetry", get_args(SymmetryUse))
        check_choice(self, "vision", get_args(Seers))

    def _check_devices(self, shards: int) -> None:
        num_envs, multiple = self.environments[2], self.num_minibatches * shards
        if num_envs % multiple:
            lower = num_envs // multiple * multiple
            raise ConfigError(
                f"EnvironmentDataModule.num_envs={num_envs} cannot be split over {shards} devices, and on each of them "
                f"into PPOTask.num_minibatches={self.num_minibatches}: expected a multiple of {multiple}. Nearest: "
                + (f"{lower}, {lower + multiple}." if lower else f"{multiple}.")
            )

    def _learning_data(self, rollout: Transitions, memory: jax.Array) -> Minibatch:
        rewards = rollout.reward * self.reward_scaling
        advantage = generalized_advantages(
            rewards, rollout.value, rollout.next_value, rollout.done, self.discount, self.gae_lambda
        )
        mean, variance = _moments(advantage)
        return Minibatch(
            obs=rollout.obs,
            raw_action=rollout.raw_action,
            policy=rollout.policy,
            log_prob=rollout.log_prob,
            value=rollout.value,
            advantage=(advantage - mean) / (jnp.sqrt(variance) + 1e-8),
            target=advantage + rollout.value,
            first=rollout.first,
            memory=memory,
        )

    def _learn(self, state: TrainState, data: Minibatch, ids: jax.Array, rng: jax.Array) -> tuple[TrainState, Metrics]:
        """All epochs' minibatches, one optimizer step each."""
        num_envs = data.log_prob.shape[1]
        shards, shard = self.environments[2] // num_envs, jax.lax.axis_index(DATA) if is_local() else 0
        mirror: Symmetry | None = None if self.symmetry == "none" else self.environments[0].env.symmetry

        def one_minibatch(state: TrainState, step: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Metrics]:
            rows, key = step
            part = jax.tree.map(lambda leaf: leaf[:, rows], dataclasses.replace(data, memory=data.memory[None]))
            part = dataclasses.replace(part, memory=part.memory[0])
            own = part.log_prob.shape[1]
            key, image_key = jax.random.split(key)
            noise = _entropy_noise(key, ids[rows], part.raw_action.shape)
            if mirror is not None and self.symmetry == "augment":
                images = _entropy_noise(image_key, ids[rows], part.raw_action.shape)
                part, noise = mirror_minibatch(part, mirror), jnp.concatenate([noise, images], axis=1)
            weights = LossWeights(
                clip=self.clip,
                value=self.value_coef,
                entropy=state.hyperparameters["entropy_coef"],
                clip_value=self.clip_value,
                symmetry=self.symmetry_coef,
            )

            def objective(params: Arrays) -> tuple[jax.Array, Metrics]:
                wanted = mirror if self.symmetry == "loss" else None
                return ppo_loss(state.model(params), part, noise, weights, wanted, own)

            (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
            loss, metrics, grads = mean_over_devices((loss, metrics, grads))
            if self.learning_rate_schedule == "adaptive":  # before the step, so that this one is shorter already
                rate = adapt_rate(state.hyperparameters["learning_rate"], metrics["kl"], self.desired_kl)
                state = state.replace(opt_state=optax.tree_utils.tree_set(state.opt_state, learning_rate=rate))
            state = state.apply_gradients(grads)
            return state, {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads)}

        def one_epoch(state: TrainState, key: jax.Array) -> tuple[TrainState, Metrics]:
            shuffle_rng, noise_rng = jax.random.split(key)
            rows = _shuffled_parts(shuffle_rng, num_envs, self.num_minibatches, shards, shard)
            return jax.lax.scan(one_minibatch, state, (rows, jax.random.split(noise_rng, self.num_minibatches)))

        # The environments' states have no part in it, and a loop would copy them.
        carry, state = state.carry, state.replace(carry=())
        state, metrics = jax.lax.scan(one_epoch, state, jax.random.split(rng, self.num_epochs))
        return state.replace(carry=carry), {
            **jax.tree.map(jnp.mean, metrics),
            "learning_rate": state.hyperparameters["learning_rate"],
        }


def adapt_rate(rate: jax.Array, kl: jax.Array, desired_kl: float) -> jax.Array:
    """rsl_rl's adaptive learning rate, in [1e-5, 1e-2]: it keeps the policy's step near `desired_kl`."""
    # At a rollout's first minibatch the divergence is 0 but for rounding, which is to decide nothing: it is another on
    # each number of devices.
    moved = kl > 1e-6
    rate = jnp.where(kl > 2 * desired_kl, jnp.maximum(1e-5, rate / 1.5), rate)
    return jnp.where((kl < desired_kl / 2) & moved, jnp.minimum(1e-2, rate * 1.5), rate)


def _shuffled_parts(
    rng: jax.Array, num_envs: int, parts: int, shards: int = 1, shard: jax.Array | int = 0
) -> jax.Array:
    """Environments dealt out to minibatches at random, `(parts, num_envs / parts)`: evenly from each group of them.

    Args:
      rng: the same on all devices.
      num_envs: environments of a device, a multiple of `parts`.
      parts: minibatches.
      shards: devices; each holds whole groups.
      shard: the number of this one.
    """
    groups = math.gcd(_GROUPS, shards * num_envs // parts)
    if groups % shards:  # more devices than groups, or an odd number of them
        groups = shards
    local = groups // shards
    size = num_envs // local
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, shard * local + jnp.arange(local))
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    rows = order.reshape(local, parts, size // parts) + jnp.arange(local)[:, None, None] * size
    return rows.swapaxes(0, 1).reshape(parts, -1)


def _entropy_noise(key: jax.Array, ids: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal `(steps, envs, action_size)`: of an environment's number, wherever it is in the minibatch."""
    steps, _, size = shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
    return jax.vmap(lambda key: jax.random.normal(key, (steps, size)), out_axes=1)(keys)


def _moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over all devices."""
    mean = mean_over_devices(values.mean())
    return mean, mean_over_devices(jnp.mean((values - mean) ** 2))


def _finished(rollout: Transitions, carry: PPOCarry) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """How many episodes ended in the rollout, and their mean return and length; the last known ones where none did."""
    done = rollout.done
    ended, returned, length = sum_over_devices(
        (done.sum(), (done * rollout.episode_return).sum(), (done * rollout.episode_length).sum())
    )
    return ended, (
        jnp.where(ended > 0, returned / jnp.maximum(ended, 1), carry.episode_return),
        jnp.where(ended > 0, length / jnp.maximum(ended, 1), carry.episode_length),
    )


def _explained_variance(values: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where values foresee the targets, 0 where they say no more than the mean."""
    return 1 - _moments(targets - values)[1] / (_moments(targets)[1] + 1e-8)


def _first_bad(rollout: Transitions, last_obs: Any, ids: jax.Array) -> jax.Array:
    """The number of the first environment that gave an observation or a reward that is not finite, of its own accord.

    -1 where none did, -2 where the policy's actions were not finite, or too wild, before.
    """
    seen = _finite(rollout.obs)
    following = jnp.concatenate([seen[1:], _finite(jax.tree.map(lambda leaf: leaf[None], last_obs))])
    # What an episode led to is seen in its value alone: the next observation is another episode's.
    ending = jnp.isfinite(rollout.next_value) | ~jnp.isfinite(rollout.value)
    failed = ~jnp.isfinite(rollout.reward) | ~jnp.where(rollout.done > 0, ending, following)
    action = rollout.policy.action(rollout.raw_action)
    tame = jnp.cumsum(~(jnp.abs(action) <= _WILD).all(axis=-1), axis=0) == 0  # so far
    bad = ~seen[0] | (failed & tame).any(axis=0)
    policy = jnp.any((failed & ~tame) | (seen & ~jnp.isfinite(action).all(axis=-1)))
    # One number says it all, so that devices exchange one: ids, then the policy, then nothing.
    last = jnp.finfo(jnp.float32).max
    first = jnp.min(jnp.where(bad, ids.astype(jnp.float32), jnp.where(policy, last, jnp.inf)))
    first = jax.lax.pmin(first, DATA) if is_local() else first
    return jnp.select([first < last, first == last], [first, jnp.full_like(first, _POLICY)], -1.0)


def _finite(tree: Any) -> jax.Array:
    """Whether all of it is finite, `(steps, envs)`."""
    leaves = [jnp.isfinite(leaf).all(axis=tuple(range(2, leaf.ndim))) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all(axis=0)


def _observation_sizes(env: Any) -> dict[str, int]:
    """Lengths of the vectors that the policy sees, and the value function."""
    size, kind = env.observation_size, type(env).__name__
    if not isinstance(size, Mapping):
        return {"state": _length(size, f"{kind}.observation_size")}
    if "state" not in size:
        raise ConfigError(
            f"{kind} observes {', '.join(map(repr, size)) or 'nothing'}: PPOTask's policy sees 'state', and its value "
            f"function 'privileged_state' where there is one. Name a vector so.{nearest('state', map(str, size))}"
        )
    names = (name for name in ("state", "privileged_state") if name in size)
    return {name: _length(size[name], f"{kind}.observation_size[{name!r}]") for name in names}


def _length(shape: Any, name: str) -> int:
    lengths = tuple(shape) if hasattr(shape, "__len__") else (shape,)
    if len(lengths) != 1 or not hasattr(lengths[0], "__index__"):
        raise ConfigError(f"{name} is {shape!r}: expected a vector's length. Flatten it in the environment.")
    return int(lengths[0])
