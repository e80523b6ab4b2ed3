"""A power cut at any moment costs no checkpoint that was reported as saved, and leaves none half there."""

import os

import pytest
from stress.power_cut import survey


def test_power_cuts(tmp_path):
    lost, line = survey(tmp_path, cuts=8, seed=1, each=4, resumes=2)
    assert not lost, "\n".join([*lost, line])


def test_a_disk_that_is_never_flushed_loses_them(tmp_path, monkeypatch):
    monkeypatch.setattr("galvanax.files.sync", lambda path: None)
    lost, _ = survey(tmp_path, cuts=8, seed=1, resumes=0)
    assert any("was reported" in line for line in lost), lost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("galvanax.runs.checkpoints.sync_tree", lambda folder: None),
        ("galvanax.runs.checkpoints.replace", os.replace),
    ],
)
def test_each_flush_is_needed(tmp_path, monkeypatch, name, without):
    monkeypatch.setattr(name, without)
    lost, line = survey(tmp_path, cuts=20, seed=2, resumes=0)
    print(f"\nwithout {name}: {line}")
    assert lost


@pytest.mark.slow
def test_fifty_power_cuts(tmp_path):
    lost, line = survey(tmp_path, cuts=50, seed=0)
    print(f"\n{line}")
    assert not lost, "\n".join([*lost, line])
