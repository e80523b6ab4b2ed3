"""Seconds from the command to the first training step and to the end, with an empty and a filled compile cache.

uv run python benchmarks/startup.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import tyro


def main(rounds: int = 3, experiment: str = "pendulum") -> None:
    """Prints both starts of each round and their ratio.

    Args:
        rounds: how often, each from an empty cache.
        experiment: what to fit.
    """
    ratios, after_imports = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import galvanax.cli.fit"], check=True)
        imports = time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            cold, cold_end = start(experiment, folder, "cold")
            warm, warm_end = start(experiment, folder, "warm")
        ratios.append(warm / cold)
        after_imports.append((warm - imports) / (cold - imports))
        print(f"empty cache: first step {cold:5.1f} s, end {cold_end:5.1f} s;  ", end="")
        print(f"filled: first step {warm:5.1f} s, end {warm_end:5.1f} s;  first steps {ratios[-1]:.2f}", flush=True)
    print(f"filled ÷ empty, median of {rounds}: {statistics.median(ratios):.2f}")
    print(f"the same without the import of the packages ({imports:.1f} s): {statistics.median(after_imports):.2f}")


def start(experiment: str, folder: str, name: str) -> tuple[float, float]:
    """Runs the command in a process of its own; returns the seconds to its first "step" line and to its end."""
    environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
    command = [sys.executable, "-m", "galvanax.cli.main", "fit", experiment, "--trainer.run-dir", f"{folder}/{name}"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = None
    for line in process.stdout:
        if first is None and line.startswith("step "):
            first = time.perf_counter() - begin
    if process.wait() != 0 or first is None:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return first, time.perf_counter() - begin


if __name__ == "__main__":
    tyro.cli(main)
