"""The mirror image of a robot, as its policy sees it."""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
    """A mirror of the robot: which entry of a mirrored vector comes from where, and with which sign.

    Attributes:
      obs: permutation of the policy's observation `(observation_size,)`.
      obs_sign: ±1 for each entry.
      action: permutation of the action `(action_size,)`.
      action_sign: ±1 for each entry.
    """

    obs: np.ndarray
    obs_sign: np.ndarray
    action: np.ndarray
    action_sign: np.ndarray

    def mirror_obs(self, obs: jax.Array) -> jax.Array:
        """The observation `(..., observation_size)` of the mirrored robot."""
        return obs[..., self.obs] * self.obs_sign

    def mirror_action(self, action: jax.Array) -> jax.Array:
        """The action `(..., action_size)` that does the mirrored thing."""
        return action[..., self.action] * self.action_sign
