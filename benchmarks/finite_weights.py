"""The step rate of `Trainer.fit` with the look at the weights ÷ without it, interleaved in one process.

    uv run python benchmarks/finite_weights.py

The look is part of the compiled program: one pass over the weights for each dispatch, whatever its number of steps.
"""

import statistics
from unittest import mock

import jax.numpy as jnp
import numpy as np
import tyro
from checkpoint_stall import Case, fit, spread

from galvanax.trainer import programs, run

CASES = (
    Case("small MLP, batch 8", 128, 8, 12800),
    Case("small MLP, batch 128", 128, 128, 6400),
    Case("step of about 2 ms", 256, 512, 1500),
    Case("step of about 10 ms", 512, 1024, 300),
)


def main(rounds: int = 7, scale: float = 1.0) -> None:
    """Prints the table.

    Args:
        rounds: interleaved repetitions.
        scale: of the number of timed steps.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 6)).astype(np.float32)
    data = {"x": x, "y": np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], -1)}
    print(f"{'case':22s} {'without':>9s} {'with':>9s}   with ÷ without      best ÷ best")
    for case in CASES:
        rates: dict[bool, list[float]] = {True: [], False: []}
        steps = max(50, round(case.steps * scale))
        for index in range(rounds + 1):
            # Turned around each time: whoever comes first may meet a busier or a cooler machine.
            for looks in (True, False) if index % 2 else (False, True):
                rate = fit(case, data, steps, []) if looks else _without(case, data, steps)
                if index > 0:  # the first round compiles
                    rates[looks].append(rate)
        medians = [f"{statistics.median(rates[looks]):9,.0f}" for looks in (False, True)]
        best = max(rates[True]) / max(rates[False])
        print(f"{case.name:22s} {' '.join(medians)}   {spread(rates[True], rates[False])}   {best:.2f}", flush=True)


def _without(case: Case, data: dict, steps: int) -> float:
    with (
        mock.patch.object(programs, "finite_weights", return_value=jnp.zeros(0, bool)),
        mock.patch.object(run, "weight_names", return_value=[]),
    ):
        return fit(case, data, steps, [])


if __name__ == "__main__":
    tyro.cli(main)
