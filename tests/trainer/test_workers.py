"""Grain's worker processes: started once, ended with the run, resumed where they were."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, sys
import grain
import numpy as np

class Row(grain.transforms.Map):
    def map(self, index):
        with open(f"pids/{os.getpid()}", "a"):
            return {"x": np.float32([index]) / 64, "y": np.float32([index]) / 32}

if __name__ == "__main__":
    import galvanax as gx
    from support import LineTask

    class Data(gx.DataModule):
        def train_dataset(self, seed):
            stream = grain.MapDataset.range(64).shuffle(seed).repeat().map(Row()).to_iter_dataset().batch(4)
            return stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=1))

    def fit(folder, steps, **settings):
        return gx.Trainer(max_steps=steps, run_dir=folder, log_every=5).fit(LineTask(), Data(), **settings)

    whole = fit("whole", 30)
    print("workers", len(os.listdir("pids")))
    fit("cut", 12)
    cut = fit("cut", 30, resume="last")
    print("workers", len(os.listdir("pids")))
    print("same", float(whole.model.kernel[0, 0]) == float(cut.model.kernel[0, 0]), whole.metrics == cut.metrics)
"""


def test_they_start_once_and_end_with_the_run(tmp_path):
    (tmp_path / "pids").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["workers 1", "workers 3", "same True True"], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "leaked" not in done.stderr
    for pid in (tmp_path / "pids").iterdir():
        assert not Path(f"/proc/{pid.name}").exists()
