"""`galvanax doctor`: what it says of a machine that is well, and of each thing that can be wrong."""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from galvanax.cli import doctor_checks
from galvanax.cli.doctor_checks import CHECKS, GIB, TESTED, Result
from galvanax.cli.main import main

INSTALLED = importlib.metadata.version


def run(capsys, *names):
    """The exit status and the JSON of checks."""
    status = 0
    try:
        main(["doctor", "--json", "--only", *names] if names else ["doctor", "--json"])
    except SystemExit as error:
        status = error.code
    return status, json.loads(capsys.readouterr().out)


def one(capsys, name):
    """The exit status and the result of one check."""
    status, report = run(capsys, name)
    (result,) = report["results"]
    assert report["summary"]["ok"] == (result["status"] != "fail") == (status == 0)
    return status, SimpleNamespace(**result)


def set_versions(monkeypatch, **versions):
    """Makes packages have these versions; None for one that isn't installed."""

    def version(name):
        found = versions.get(name.replace("-", "_"), "")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found or INSTALLED(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def as_tested(monkeypatch):
    """Makes every package, and Python, one that was tested, wherever this test runs."""
    set_versions(monkeypatch, **{name.replace("-", "_"): known[0] for name, known in TESTED.items()})
    monkeypatch.setattr(platform, "python_version", lambda: "3.11.9")


def test_this_machine(capsys):
    """Everything, once: what training needs passes here."""
    status, report = run(capsys)
    results = {result["name"]: result for result in report["results"]}
    assert list(results) == list(CHECKS)
    needed = "devices", "jit", "mjx", "brax", "environment", "orbax", "machine", "compile-cache"
    assert {name: results[name]["status"] for name in needed} == dict.fromkeys(needed, "pass"), report
    assert {result["status"] for result in results.values()} <= {"pass", "warn"}
    assert status == 0
    for result in results.values():
        assert set(result) == {"name", "status", "found", "advice", "seconds", "traceback"}
        assert result["found"]
        assert result["status"] == "pass" or result["advice"]
    assert sum(report["summary"][status] for status in ("pass", "warn", "fail")) == len(CHECKS)
    assert report["versions"]["jax"] == jax.__version__
    assert set(TESTED) | {"python", "galvanax", "jaxlib", "wandb"} <= set(report["versions"])


def test_every_requirement_has_a_tested_version():
    assert {requirement.name for requirement in doctor_checks._requirements()} == set(TESTED)


@pytest.mark.parametrize("columns", [80, 140])
def test_table(capsys, monkeypatch, columns):
    """Fits the terminal, and shows brackets, which rich would take for colours."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setitem(CHECKS, "jit", lambda: Result("warn", "x [red] y", 'pip install "galvanax[gpu]"'))
    main(["doctor", "--only", "jit", "machine"])
    out = capsys.readouterr().out
    assert "x [red] y" in out
    assert "galvanax[gpu]" in out
    assert max(map(len, out.splitlines())) <= columns
    assert "2 checks: 1 pass, 1 warn, 0 fail" in out
    monkeypatch.setitem(CHECKS, "jit", lambda: 1 / 0)
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--only", "jit"])
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out
    assert "1 check: 0 pass, 0 warn, 1 fail" in out


def test_a_check_that_raises_or_prints(capfd, monkeypatch):
    """The others still run, and stdout is JSON alone."""

    def broken():
        print("noise")
        os.write(1, b"noise of native code\n")
        raise RuntimeError("CUDA\n  went away" + "!" * 1000)

    monkeypatch.setitem(CHECKS, "jit", broken)
    status, report = run(capfd, "machine", "jit", "precision")
    assert status == 1
    jit, _, machine = report["results"]
    assert (jit["name"], jit["status"], machine["name"]) == ("jit", "fail", "machine")
    assert jit["found"].startswith("RuntimeError: CUDA went away!!")
    assert len(jit["found"]) < 700
    assert "in broken" in jit["traceback"]
    assert report["summary"] == {"pass": 2, "warn": 0, "fail": 1, "ok": False}


def test_unknown_check(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--only", "device"])
    assert caught.value.code == 2
    assert "only=device: there is no such check. Nearest: devices" in capsys.readouterr().err


def test_versions(capsys, monkeypatch):
    as_tested(monkeypatch)
    status, result = one(capsys, "versions")
    assert (status, result.status, result.advice) == (0, "pass", "")
    assert f"all {len(TESTED)} packages as tested" in result.found

    set_versions(monkeypatch, brax=None, mujoco="3.2.0", imageio="3.0", jax="0.11.2")
    status, result = one(capsys, "versions")
    assert (status, result.status) == (1, "fail")
    assert "brax is missing" in result.found
    assert "mujoco 3.2.0 is outside >=4.0,<5" in result.found
    assert result.advice == 'pip install "brax>=0.14.2,<0.15" "imageio[ffmpeg]>=2.37,<3" "mujoco>=4.0,<5"'

    as_tested(monkeypatch)
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    status, result = one(capsys, "versions")
    assert (status, result.status) == (1, "fail")
    assert "Python 3.9.1 is outside" in result.found


def test_untested_versions_are_a_warning(capsys, monkeypatch):
    as_tested(monkeypatch)
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.0")
    known = {name.replace("-", "_"): known[0] for name, known in TESTED.items()}
    set_versions(monkeypatch, **{**known, "jax": "0.11.2", "flax": "0.12.8+local"})
    status, result = one(capsys, "versions")
    assert (status, result.status) == (0, "warn")
    assert result.found.endswith("untested: Python 3.13.0 (tested: 3.11, 3.12); jax 0.11.2 (tested: 0.10.2, 0.12.0.1)")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a machine whose jax sees its GPU")
def test_gpu_that_jax_does_not_see(capsys, monkeypatch):
    monkeypatch.setattr(doctor_checks, "nvidia_gpu", lambda: "GPU 0: NVIDIA H200")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    set_versions(monkeypatch, jax_cuda12_plugin=None, jax_cuda13_plugin=None)
    status, result = one(capsys, "devices")
    assert (status, result.status) == (1, "fail")
    assert "though the machine has GPU 0: NVIDIA H200" in result.found
    assert 'pip install "galvanax[gpu]"' in result.advice

    set_versions(monkeypatch, jax_cuda12_plugin="0.9.0", jax_cuda13_plugin=None, jaxlib="0.10.2")
    assert "jax-cuda12-plugin 0.9.0 does not fit jaxlib 0.10.2" in one(capsys, "devices")[1].advice
    set_versions(monkeypatch, jax_cuda12_plugin="0.10.2", jax_cuda13_plugin=None, jaxlib="0.10.2")
    assert "is installed but doesn't start" in one(capsys, "devices")[1].advice

    # Hidden on purpose.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    status, result = one(capsys, "devices")
    assert (status, result.status) == (0, "warn")
    assert result.advice.endswith("unset JAX_PLATFORMS=cpu.")


def test_jax_that_does_not_start(capsys, monkeypatch):
    def devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    set_versions(monkeypatch, jax_cuda12_plugin=None, jax_cuda13_plugin=None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    status, result = one(capsys, "devices")
    assert (status, result.status) == (1, "fail")
    assert result.found.startswith(f"AssertionError: raise AssertionError ({__file__}:")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    status, result = one(capsys, "devices")
    assert (status, result.status) == (1, "fail")
    assert "jax can't start with JAX_PLATFORMS=cuda" in result.found
    assert result.advice.startswith('Unset JAX_PLATFORMS. pip install "galvanax[gpu]"')


def test_nvidia_gpu(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H200 (UUID: GPU-1)"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor_checks.nvidia_gpu() == "GPU 0: NVIDIA H200"
    # As in an image for CUDA on a machine without a GPU.
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert doctor_checks.nvidia_gpu() == ("/dev/nvidia0" if Path("/dev/nvidia0").exists() else None)


def test_wrong_numbers(capsys, monkeypatch):
    """Each of the checks that compute notices when what they check is wrong."""
    losses = importlib.import_module("brax.training.agents.ppo.losses")
    right = losses.compute_gae
    monkeypatch.setattr(losses, "compute_gae", lambda *args, **kwargs: right(*args, lambda_=0.9, discount=0.9))
    status, result = one(capsys, "brax")
    assert (status, result.status) == (1, "fail")
    assert "GAE is wrong by" in result.found

    monkeypatch.setattr(mujoco, "mj_step", lambda model, data: None)
    status, result = one(capsys, "mjx")
    assert (status, result.status) == (1, "fail")
    assert "differs from C MuJoCo's by" in result.found

    matmul = jnp.matmul
    monkeypatch.setattr(jnp, "matmul", lambda a, b: matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)))
    status, result = one(capsys, "precision")
    assert (status, result.status) == (0, "warn")
    assert "JAX_DEFAULT_MATMUL_PRECISION=highest" in result.advice

    monkeypatch.setattr(jax, "value_and_grad", lambda f: lambda w: (f(w), jax.grad(f)(w) + 1))
    status, result = one(capsys, "jit")
    assert (status, result.status) == (1, "fail")
    assert "wrong by 1" in result.found


def test_settings_that_slow_down(capsys, monkeypatch):
    with jax.disable_jit():
        status, result = one(capsys, "jit")
    assert (status, result.status) == (0, "warn")
    assert "nothing is compiled" in result.found


def test_environment(capsys, monkeypatch):
    from galvanax import envs

    pendulum = envs.load("pendulum")
    monkeypatch.setattr(envs, "load", lambda name: pendulum)
    monkeypatch.setattr(
        type(pendulum), "step", lambda self, state, action: state.replace(reward=state.reward * jnp.nan)
    )
    status, result = one(capsys, "environment")
    assert (status, result.status) == (1, "fail")
    assert "not finite" in result.found
    monkeypatch.setattr(type(pendulum), "step", lambda self, state, action: state)
    assert "doesn't move" in one(capsys, "environment")[1].found
    monkeypatch.undo()
    # One of the user's choice.
    status, report = run(capsys, "environment", "--robot", "pendulum")
    assert (status, report["results"][0]["status"]) == (0, "pass")
    assert report["results"][0]["found"].startswith("pendulum: 3 compiled steps")
    status, report = run(capsys, "environment", "--robot", "go3")
    assert status == 1
    assert "Unknown environment 'go3'. Nearest: go2" in report["results"][0]["found"]
    # A registry that doesn't import.
    monkeypatch.setitem(sys.modules, "galvanax.envs", None)
    monkeypatch.delattr("galvanax.envs")
    status, result = one(capsys, "environment")
    assert (status, result.status) == (1, "fail")
    assert "ModuleNotFoundError" in result.found


def test_orbax(capsys, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    load = ocp.load
    monkeypatch.setattr(ocp, "load", lambda *args: jax.tree.map(lambda leaf: leaf + 1, load(*args)))
    status, result = one(capsys, "orbax")
    assert (status, result.status) == (1, "fail")
    assert "loads as something else" in result.found


def test_rendering_is_never_a_failure(capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    status, result = one(capsys, "rendering")
    assert (status, result.status) == (0, "warn")
    assert "MUJOCO_GL=disable forbids to draw" in result.found
    assert "Training works without" in result.advice

    from galvanax.rendering import renderer, video

    monkeypatch.setattr(renderer, "start_gl", lambda: "egl")
    monkeypatch.setattr(renderer, "render_frames", lambda *args, **kwargs: np.zeros((4, 48, 64, 3), np.uint8))
    assert "all one colour" in one(capsys, "rendering")[1].found
    frames = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
    monkeypatch.setattr(renderer, "render_frames", lambda *args, **kwargs: frames)
    assert one(capsys, "rendering")[1].status == "pass"
    monkeypatch.setattr(video.imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/no/ffmpeg")
    status, result = one(capsys, "rendering")
    assert (status, result.status) == (0, "warn")
    assert "egl draws, but no mp4" in result.found
    monkeypatch.setitem(sys.modules, "galvanax.rendering.video", None)
    assert one(capsys, "rendering")[1].status == "warn"


def test_compile_cache(capsys, monkeypatch, tmp_path):
    setting = jax.config
    before = setting.jax_compilation_cache_dir
    try:
        (tmp_path / "file").touch()
        setting.update("jax_compilation_cache_dir", str(tmp_path / "file" / "xla"))
        status, result = one(capsys, "compile-cache")
        assert (status, result.status) == (0, "warn")
        assert f"{tmp_path}/file/xla can't be written to: Not a directory" in result.found

        setting.update("jax_compilation_cache_dir", str(tmp_path / "new"))
        assert "new: 0 programs, 0.0 MiB" in one(capsys, "compile-cache")[1].found
        (tmp_path / "new" / "jit_f-1-cache").write_bytes(b"1" * 2**20)
        (tmp_path / "new" / "jit_f-1-atime").write_bytes(b"1")
        assert "new: 1 programs, 1.0 MiB" in one(capsys, "compile-cache")[1].found
        monkeypatch.setattr(doctor_checks, "LARGE_CACHE", 2**20)
        status, result = one(capsys, "compile-cache")
        assert (status, result.status) == (0, "warn")
        assert f"rm -r {tmp_path}/new" in result.advice
    finally:
        setting.update("jax_compilation_cache_dir", before)


def test_little_disk_and_memory(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5 * GIB))
    monkeypatch.setattr(doctor_checks, "_memory", lambda: GIB)
    status, result = one(capsys, "machine")
    assert (status, result.status) == (0, "warn")
    assert "1.0 GiB memory, 1.5 GiB free" in result.found
    assert "--run-dir" in result.advice


def test_optional(capsys, monkeypatch):
    set_versions(monkeypatch, wandb=None, playground="0.2.0", onnxruntime="1.31.1")
    status, result = one(capsys, "optional")
    assert (status, result.status) == (0, "pass")
    assert "wandb not installed (needed for logs to Weights & Biases)" in result.found
    assert "playground 0.2.0; onnxruntime 1.31.1" in result.found
    set_versions(monkeypatch, wandb="0.18.0")
    status, result = one(capsys, "optional")
    assert (status, result.status, result.advice) == (0, "warn", 'pip install "wandb>=0.19"')
