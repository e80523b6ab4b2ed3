"""How long one waits for the first line: imports and commands, each in a process of its own, taking turns.

uv run python benchmarks/import_time.py [--rounds 10]
"""

import argparse
import statistics
import subprocess
import sys
import time

BASE = "import jax, flax.nnx, optax"
LINES = {
    BASE: ["-c", BASE],
    "import galvanax": ["-c", "import galvanax"],
    "... and Trainer, Task, ArrayDataModule": [
        "-c",
        "import galvanax as gx; gx.Trainer, gx.Task, gx.ArrayDataModule",
    ],
    "... and envs.load, PPOTask": ["-c", "import galvanax as gx; gx.envs.load, gx.PPOTask"],
    "galvanax --help": ["-m", "galvanax.cli.main", "--help"],
    "galvanax list": ["-m", "galvanax.cli.main", "list"],
    "galvanax fit pendulun (mistyped)": ["-m", "galvanax.cli.main", "fit", "pendulun"],
}


def main() -> None:
    """Prints medians, quartiles and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for turn in range(rounds + 1):
        for name, arguments in LINES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            if turn:  # the first fills the disk's cache
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds[BASE])
    for name, taken in seconds.items():
        low, middle, high = statistics.quantiles(taken, n=4)
        print(f"{name:40} {middle:6.2f} s ({low:.2f} to {high:.2f})  {middle / base:5.2f} x")


if __name__ == "__main__":
    main()
