"""A run folder that was changed is read as it is or refused in one line, and nothing of it is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_run_folder.py")


@pytest.mark.slow
def test_a_few_mutants(tmp_path):
    fuzz(tmp_path, "--mutants", "12", "--processes", "1", "--runs", "net")


@pytest.mark.slow
def test_a_thousand_mutants(tmp_path):
    fuzz(tmp_path, "--mutants", "1000", "--processes", "2")


def fuzz(folder: Path, *flags: str) -> None:
    """Fails where a mutant was taken badly; in processes of its own, whose memory is watched."""
    command = [sys.executable, str(SCRIPT), *flags, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
