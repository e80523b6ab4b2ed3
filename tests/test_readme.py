"""The README's code runs as it is printed."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_the_custom_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "class SpringTask" in block]
    names: dict = {"__name__": "readme"}
    exec(code, names)
    assert names["result"].metrics["val/loss"] < 1e-3
    assert names["task"] == names["SpringTask"]()
    np.testing.assert_allclose(names["model"](names["xv"]), names["yv"], atol=0.1)
    assert (tmp_path / "runs" / "spring" / "metrics.csv").exists()


def test_the_two_commands_stand_at_the_top():
    text = README.read_text()
    first = text.index("pip install uv && uv run galvanax fit pendulum")
    assert first < text.index("pip install uv && uv run pytest") < text.index("## ")


def test_the_code_for_dynax_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (README.parent / "docs" / "dynax.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    expected = names["dataset"].next_states[0, 0]
    np.testing.assert_allclose(names["next_state"], expected, atol=0.02)
