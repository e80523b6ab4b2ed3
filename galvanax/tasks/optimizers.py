"""Optimizers whose learning rate can be seen."""

from typing import Literal

import optax

# Everything else stays a constant of the compiled step.
_STATIC = ("b1", "b2", "eps", "eps_root", "mu_dtype", "weight_decay", "mask", "nesterov")

Schedule = Literal["constant", "cosine"]


def adamw(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """`optax.adamw`, to the last bit, that keeps its learning rate in its state: `Task.train_step` logs it."""
    return optax.inject_hyperparams(optax.adamw, static_args=_STATIC)(
        learning_rate=learning_rate, weight_decay=weight_decay
    )


def scheduled(learning_rate: float, schedule: Schedule, num_steps: int, warmup: int) -> optax.ScalarOrSchedule:
    """The learning rate over a run.

    Args:
      learning_rate: the highest one.
      schedule: "constant": that rate from the first step to the last, with no warm-up. "cosine": from 0 linearly up to
        it, then down to 0 along half a cosine, which the run's last step ends.
      num_steps: of the run.
      warmup: steps that the rate rises for, at least one; of "cosine" alone.
    """
    if schedule == "constant":
        return learning_rate
    rising = max(warmup, 1)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, rising, max(num_steps, rising + 1))
