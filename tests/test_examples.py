"""The examples run; what they reach is in the documentation."""

import importlib.util
import json
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plan(tmp_path, capsys):
    plan = load("plan")
    plan.main(plan.Plan(start="near-top", seeds=1, seconds=0.4, num_samples=8, output_dir=tmp_path))
    report = json.loads((tmp_path / "cart-pole-near-top.json").read_text())
    assert report["true"][0]["mean_reward"] > 0.99
    assert (tmp_path / "cart-pole-near-top.png").stat().st_size > 1000
    assert "cart-pole, true model, start 0:  mean_reward" in capsys.readouterr().out
