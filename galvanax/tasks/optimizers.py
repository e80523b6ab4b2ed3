"""Optimizers whose learning rate can be seen."""

import optax

# Everything else stays a constant of the compiled step.
_STATIC = ("b1", "b2", "eps", "eps_root", "mu_dtype", "weight_decay", "mask", "nesterov")


def adamw(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """`optax.adamw`, to the last bit, that keeps its learning rate in its state: `Task.train_step` logs it."""
    return optax.inject_hyperparams(optax.adamw, static_args=_STATIC)(
        learning_rate=learning_rate, weight_decay=weight_decay
    )
