"""Rows a second of `gx.read_trajectories` beside numpy and pandas, and the memory that windows of any size take.

    uv run --with pandas python benchmarks/read_csv.py

Each reader runs in a process of its own, over the same files, three times; the best counts. Peaks are of the process's
resident memory beyond what it had after its imports.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro

HEADER = "timestamp,qpos_0,qpos_1,qpos_2,qvel_0,qvel_1,qvel_2,ctrl_0"

CHILD = """
import importlib.util, json, resource, sys, time
from pathlib import Path
import numpy as np
kind, folder, *sizes = sys.argv[1:]
files = sorted(Path(folder).glob("*.csv"))
if kind == "pandas":
    if importlib.util.find_spec("pandas") is None:
        print("null")
        sys.exit()
    import pandas
elif kind != "numpy":
    import galvanax as gx

def read():
    if kind == "numpy":
        return [np.loadtxt(file, delimiter=",", skiprows=1) for file in files]
    if kind == "pandas":
        return [pandas.read_csv(file).to_numpy() for file in files]
    if kind == "windows":
        history, horizon = map(int, sizes)
        module = gx.TrajectoryDataModule(folder, history=history, horizon=horizon, angles=(1, 2))
        dataset = module.train_dataset(0)
        for index in range(100):
            dataset[index]
        return module
    return gx.read_trajectories(folder, cache=kind == "cached")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

if kind == "cached":
    read()
before, times = peak(), []
for _ in range(1 if kind == "windows" else 3):
    start = time.perf_counter()
    kept = read()
    times.append(time.perf_counter() - start)
print(json.dumps([min(times), peak() - before]))
"""


@dataclasses.dataclass
class ReadBenchmark:
    """The benchmark's settings.

    Attributes:
      files: number of files.
      rows: rows in each.
    """

    files: int = 1000
    rows: int = 1000


def main() -> None:
    """Writes the files, runs the readers and prints a line for each."""
    settings = tyro.cli(ReadBenchmark)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        logs.mkdir()
        write_logs(logs, settings)
        size = sum(file.stat().st_size for file in logs.iterdir()) / 2**20
        total = settings.files * settings.rows
        print(f"{settings.files} files of {settings.rows} rows and 8 columns, {size:.0f} MiB, {os.cpu_count()} cores")
        cache = {"XDG_CACHE_HOME": folder}
        for kind, name in (
            ("galvanax", "read_trajectories"),
            ("cached", "read_trajectories, cached"),
            ("pandas", "pandas.read_csv"),
            ("numpy", "numpy.loadtxt"),
        ):
            found = run(kind, logs, cache)
            if found is None:
                print(f"{name:27s} not installed: uv run --with pandas ...")
                continue
            print(f"{name:27s} {total / found[0]:12,.0f} rows/s {found[0]:7.2f} s   peak {found[1]:5.0f} MiB")
        once = total * (8 + 7 * 4) / 2**20
        print(
            f"the rows in memory once: {once:.0f} MiB; every window of 11 + 9 on its own: {once * 20 * 28 / 36:.0f} MiB"
        )
        for history, horizon in ((1, 1), (11, 9), (50, 50), (200, 200)):
            found = run("windows", logs, cache, history, horizon)
            assert found is not None
            print(
                f"TrajectoryDataModule, {history:3d} + {horizon:3d} rows: peak {found[1]:6.0f} MiB, {found[0]:5.2f} s"
            )


def write_logs(folder: Path, settings: ReadBenchmark) -> None:
    """Random numbers as a simulation would log them."""
    rng = np.random.default_rng(0)
    time = np.arange(settings.rows) * 0.02
    for index in range(settings.files):
        numbers = rng.normal(size=(settings.rows, 7))
        lines = [
            f"{now:.6g}," + ",".join(f"{number:.8g}" for number in row)
            for now, row in zip(time, numbers.tolist(), strict=True)
        ]
        (folder / f"{index:04}.csv").write_text("\n".join([HEADER, *lines, ""]))


def run(kind: str, logs: Path, environment: dict[str, str], *sizes: int) -> tuple[float, float] | None:
    """Seconds and MiB of a reader in a process of its own, or None if it isn't installed."""
    command = [sys.executable, "-c", CHILD, kind, str(logs), *map(str, sizes)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    return None if found is None else tuple(found)


if __name__ == "__main__":
    main()
