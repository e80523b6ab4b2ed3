"""MJX's own step and gradient, which says so where reverse mode can't go through it."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from galvanax.errors import ConfigError
from galvanax.physics.implicit_step import num_constraints
from galvanax.physics.quiet_mjx import mjx


def solver_step(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """`mjx.step`, whose gradient goes through the solver's iterations.

    Reverse mode can do that for one iteration, or without constraints. Otherwise it raises a ConfigError while
    tracing, before anything is compiled; forward mode and plain steps work always.
    """
    after = mjx.step(model, data)
    if model.opt.iterations == 1 or not num_constraints(model):
        return after
    qpos, qvel = (_marked.bind(array, iterations=model.opt.iterations) for array in (after.qpos, after.qvel))
    return after.replace(qpos=qpos, qvel=qvel)


def _refuse(cotangent: jax.Array, array: Any, *, iterations: int) -> Any:
    raise ConfigError(
        f"gradient='solver' with iterations={iterations}: reverse mode can't go through a loop of more than one solver "
        "iteration (mujoco issue 2259); expected gradient='implicit', or iterations=1."
    )


# The identity. Only reverse mode transposes what is linear, and it comes to a step's result before its loop.
_marked = Primitive("through_the_solver")
_marked.def_impl(lambda array, *, iterations: array)
_marked.def_abstract_eval(lambda array, *, iterations: array)
ad.deflinear2(_marked, _refuse)
batching.defvectorized(_marked)
mlir.register_lowering(_marked, lambda _, array, *, iterations: [array])
