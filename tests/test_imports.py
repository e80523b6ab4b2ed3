"""What importing costs: a name brings what it needs, and no more. In processes of their own, where nothing is yet."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import galvanax as gx
from galvanax.experiments.registry import EXPERIMENTS

HEAVY = ("mujoco", "brax", "warp", "matplotlib", "polars", "scipy", "optuna", "wandb")
SUPERVISED = """
import dataclasses, sys
import galvanax as gx
import jax.numpy as jnp, numpy as np, optax

@dataclasses.dataclass(frozen=True)
class Line(gx.Task):
    def build_model(self, rngs):
        return gx.networks.MLP(1, (4,), 1, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.adam(1e-2)

    def loss(self, model, batch, rng):
        return jnp.mean((model(batch["x"]) - batch["x"]) ** 2), {}

x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
callbacks = [gx.EMA(0.9), gx.GradientClipping(1.0), gx.CSVLogger(), gx.TensorBoardLogger(), gx.ProgressBar()]
data = gx.ArrayDataModule(train={"x": x}, val={"x": x}, batch_size=16)
gx.Trainer(max_epochs=2, run_dir="run", callbacks=callbacks).fit(Line(), data)
"""
SAYS = "\nimport json; print(json.dumps([name for name in {names!r} if name in sys.modules]))"


def loaded(code: str, names: tuple[str, ...], cwd) -> list[str]:
    """Which of these packages a process has imported after some code."""
    command = [sys.executable, "-c", code + SAYS.format(names=names)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_supervised_fit_needs_no_physics(tmp_path):
    assert loaded(SUPERVISED, HEAVY, tmp_path) == []
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_the_package_alone_imports_none_of_its_friends(tmp_path):
    assert loaded("import sys, galvanax", ("jax", "flax", "optax", "grain", "orbax", *HEAVY), tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "usage: galvanax COMMAND"),
        (["list"], 0, "pendulum "),
        (["launch", "--help"], 0, "--processes"),
        (["fti"], 2, "unknown command 'fti'. Nearest: fit"),
        (["fit", "pendulun"], 2, "Unknown experiment 'pendulun'. Nearest: pendulum"),
        (["launch", "--processes", "2", "fit", "pendulun"], 2, "Unknown experiment 'pendulun'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_needs_no_jax_waits_for_none(arguments, status, says, tmp_path):
    code = f"""
import contextlib, io, sys
from galvanax.cli.main import main
heard = io.StringIO()
with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
    try:
        main({arguments!r})
        status = 0
    except SystemExit as end:
        status = end.code or 0
assert {says!r} in heard.getvalue(), heard.getvalue()
assert status == {status}, status
"""
    assert loaded(code, ("jax", "flax", *HEAVY), tmp_path) == []


def test_doctor_says_what_is_broken(tmp_path):
    """A package that doesn't import is a failed check, and no crash."""
    code = "import sys; sys.modules['jax'] = None; from galvanax.cli.main import main; main(['doctor', '--json', {}])"
    command = [sys.executable, "-c", code.format("'--only', 'versions', 'jit', 'machine'")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    results = {result["name"]: result for result in json.loads(done.stdout)["results"]}
    assert results["jit"]["status"] == "fail"
    assert "jax" in results["jit"]["found"]
    assert results["machine"]["status"] in ("pass", "warn")


@pytest.mark.parametrize("module", [gx, gx.envs, gx.networks, gx.physics, gx.rendering], ids=lambda m: m.__name__)
def test_each_public_name_is_there(module):
    assert {name for name in module.__all__ if not hasattr(module, name)} == set()
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="Trainr"):
        _ = module.Trainr


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_list_says_what_experiments_have(name):
    made = EXPERIMENTS[name]()
    assert isinstance(made, gx.Experiment)
    assert EXPERIMENTS[name].presets == tuple(made.presets)
    assert EXPERIMENTS[name].about.endswith(".")


def test_no_module_imports_in_a_circle():
    """All imports counted: inside functions and for type checkers too."""
    root = Path(gx.__file__).parents[1]
    files = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.glob("galvanax/**/*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("galvanax"):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (inner & files.keys()) or {node.module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle
