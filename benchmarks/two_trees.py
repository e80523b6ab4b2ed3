"""The step rate of `Trainer.fit` in this checkout ÷ in another one, by processes that take turns.

    git worktree add ../before d51f5be
    uv run python benchmarks/two_trees.py ../before

The other checkout needs no environment of its own: its code runs on this one's packages.
"""

import json
import logging
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro

SIZES = {"batch 8": (128, 8, 6000), "batch 128": (128, 128, 3000), "a step of about 4 ms": (512, 512, 400)}


def main(other: tyro.conf.Positional[Path], rounds: int = 6) -> None:
    """Prints the rates, and the ratios of neighbouring processes.

    Args:
        other: the checkout to compare with.
        rounds: processes of each.
    """
    trees = {"this": Path(__file__).parents[1], "other": other.resolve()}
    found: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
    for index in range(rounds):
        for name in sorted(trees, reverse=index % 2 == 0):  # turned around each time
            words = [sys.executable, __file__, "--measure", str(trees[name])]
            found[name].append(json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout))
    for size in SIZES:
        this, before = ([one[size] for one in found[name]] for name in ("this", "other"))
        ratios = sorted(a / b for a, b in zip(this, before, strict=True))
        print(
            f"{size:22s} {statistics.median(this):9,.0f} ÷ {statistics.median(before):9,.0f} steps/s   ratios "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def measure(tree: str) -> None:
    """A process: the median rate of three runs, after one that compiles, for each size."""
    sys.path[:0] = [tree, f"{tree}/benchmarks"]
    import checkpoint_stall

    import galvanax

    assert Path(galvanax.__file__).is_relative_to(tree), galvanax.__file__
    logging.disable(logging.WARNING)
    rng, rates = np.random.default_rng(0), {}
    for name, (width, batch_size, steps) in SIZES.items():
        x = rng.normal(size=(400 * batch_size, 6)).astype(np.float32)
        case = checkpoint_stall.Case(name, width, batch_size, steps)
        runs = [checkpoint_stall.fit(case, {"x": x, "y": x[:, :2]}, steps, []) for _ in range(4)]
        rates[name] = statistics.median(runs[1:])
    print(json.dumps(rates))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        tyro.cli(main)
