"""The checks of `galvanax doctor`: each looks at one thing and says what it saw.

They import what they check when they run, so that a package that doesn't import is a failed check like any other.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

# The versions that the test suite has passed with, on Python 3.11 and 3.12.
TESTED_PYTHON = ("3.11", "3.12")
TESTED = {
    "absl-py": ("2.5.1",),
    "brax": ("0.14.2",),
    "cattrs": ("26.2.1",),
    "clu": ("0.0.12",),
    "etils": ("1.15.0",),
    "filelock": ("4.3.1",),
    "flax": ("0.12.8", "0.12.12"),
    "grain": ("0.2.18",),
    "imageio": ("2.38.1",),
    "jax": ("0.10.2", "0.12.0.1"),
    "lazy-loader": ("0.6",),
    "matplotlib": ("3.11.2",),
    "mujoco": ("4.0.0",),
    "mujoco-mjx": ("3.17.0",),
    "numpy": ("2.4.6", "2.5.5"),
    "optax": ("0.2.8",),
    "orbax-checkpoint": ("0.12.8",),
    "packaging": ("26.3",),
    "pillow": ("12.3.0",),
    "polars": ("1.44.2",),
    "rich": ("15.0.0",),
    "safetensors": ("0.8.0",),
    "scipy": ("1.17.1",),
    "tensorboardx": ("2.6.5",),
    "tyro": ("1.0.17",),
}
OPTIONAL = {
    "wandb": "logs to Weights & Biases",
    "playground": "environments of MuJoCo Playground",
    "onnxruntime": "running policies exported to ONNX",
}
GPU_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")

GIB = 2**30
LITTLE_DISK = LITTLE_MEMORY = 2 * GIB
LARGE_CACHE = 10 * GIB
# Relative error of a product of float32 matrices: 4e-7 in float32, 3e-4 in TF32, 3e-3 in bfloat16.
ROUGH_MATMUL = 1e-5


@dataclasses.dataclass(frozen=True)
class Result:
    """What a check saw.

    Attributes:
      status: "fail" is what training can't do without, "warn" what it can.
      found: what was seen.
      advice: what to do; "" for nothing.
      name: of the check.
      seconds: that it took.
      traceback: of what it raised.
    """

    status: Literal["pass", "warn", "fail"]
    found: str
    advice: str = ""
    name: str = ""
    seconds: float = 0.0
    traceback: str = ""


def installed_versions() -> dict[str, str | None]:
    """Versions of Python, Galvanax and every package that the checks look at; None where it isn't installed."""
    names = ("galvanax", *TESTED, "jaxlib", *GPU_PLUGINS, *OPTIONAL)
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def check_versions() -> Result:
    """Python and the packages, against the ranges of pyproject.toml and the versions tested."""
    python = Version(platform.python_version())
    outside, untested, install = [], [], []
    wanted = str(importlib.metadata.metadata("galvanax")["Requires-Python"])
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        outside.append(f"Python {python} is outside {wanted}")
    elif f"{python.major}.{python.minor}" not in TESTED_PYTHON:
        untested.append(f"Python {python} (tested: {', '.join(TESTED_PYTHON)})")
    requirements = _requirements()
    for requirement in requirements:
        found, tested = _version(requirement.name), TESTED.get(requirement.name.lower(), ())
        if found is None:
            outside.append(f"{requirement.name} is missing")
            install.append(requirement)
        elif not requirement.specifier.contains(found, prereleases=True):
            outside.append(f"{requirement.name} {found} is outside {_range(requirement)}")
            install.append(requirement)
        elif Version(found).public not in tested:
            untested.append(f"{requirement.name} {found} (tested: {', '.join(tested) or 'none'})")
    if outside:
        words = " ".join(f'"{_plain(requirement)}"' for requirement in install)
        return Result("fail", "; ".join(outside), f"pip install {words}" if install else "Use another Python.")
    if untested:
        return Result("warn", "in range, but untested: " + "; ".join(untested), "Nothing, if the other checks pass.")
    core = ", ".join(f"{name} {_version(name)}" for name in ("jax", "flax", "mujoco", "mujoco-mjx"))
    return Result("pass", f"Python {python}, {core}; all {len(requirements)} packages as tested")


def check_devices() -> Result:
    """What JAX computes on; a GPU that it doesn't use is a failure."""
    import jax

    try:
        devices = jax.devices()
    except Exception as error:
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        advice = f"Unset JAX_PLATFORMS. {_gpu_advice() if asked in ('cuda', 'gpu') else ''}".strip()
        return Result("fail", f"jax can't start with JAX_PLATFORMS={asked}: {said}", advice)
    kinds: dict[str, int] = {}
    for device in devices:
        kinds[_describe(device)] = kinds.get(_describe(device), 0) + 1
    found = "; ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
    if any(device.platform != "cpu" for device in devices):
        return Result("pass", f"{jax.default_backend()}: {found}")
    gpu = nvidia_gpu()
    if gpu is None:
        return Result("pass", f"{found}; no NVIDIA GPU seen")
    found = f"jax sees only the {found}, though the machine has {gpu}"
    settings = {"JAX_PLATFORMS": ("cpu",), "CUDA_VISIBLE_DEVICES": ("", "-1")}
    hiding = [f"{name}={os.environ[name]}" for name, values in settings.items() if os.environ.get(name) in values]
    if hiding:
        return Result("warn", found, f"To train on the GPU, unset {' and '.join(hiding)}.")
    return Result("fail", found, _gpu_advice())


def nvidia_gpu() -> str | None:
    """What shows that the machine has an NVIDIA GPU, whatever JAX thinks; None if nothing does."""
    if shutil.which("nvidia-smi"):
        # The program alone proves little: images for CUDA hold it, and run on machines without a GPU too.
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        if listed.startswith("GPU "):
            return listed.splitlines()[0].split(" (UUID")[0]
    return "/dev/nvidia0" if Path("/dev/nvidia0").exists() else None


def check_jit() -> Result:
    """A compiled product of matrices and its gradient, in whole numbers, which every precision holds exactly."""
    import jax
    import jax.numpy as jnp

    x, w = np.random.default_rng(0).integers(-3, 4, (2, 8, 8)).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda w: jnp.sum((x @ w) ** 2)))(w)
    if float(value) != ((x @ w) ** 2).sum() or not np.array_equal(gradient, 2 * x.T @ (x @ w)):
        worst = np.abs(gradient - 2 * x.T @ (x @ w)).max()
        return Result("fail", f"wrong by {worst:g} in a gradient of whole numbers", "Reinstall jax and jaxlib.")
    setting: Any = jax.config
    if setting.jax_disable_jit:
        return Result("warn", "right, but jax_disable_jit=True: nothing is compiled", "Unset JAX_DISABLE_JIT.")
    return Result("pass", "a compiled matmul and its gradient are exact")


def check_mjx() -> Result:
    """A step of the bundled pendulum, in MJX and in C MuJoCo."""
    import jax
    import mujoco

    from galvanax.physics.models import load_model
    from galvanax.physics.quiet_mjx import mjx

    model = load_model("pendulum")
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = 0.5, 1.0, 0.3
    stepped = jax.jit(mjx.step)(mjx.put_model(model), mjx.put_data(model, data))
    mujoco.mj_step(model, data)
    pairs = [(stepped.qpos, data.qpos), (stepped.qvel, data.qvel)]
    worst = max(float(np.abs(np.asarray(ours) - theirs).max()) for ours, theirs in pairs)
    found = f"a step of the pendulum differs from C MuJoCo's by {worst:.1g}"
    if worst <= 1e-5:
        return Result("pass", found)
    if worst <= 1e-3:
        return Result("warn", found, "Look at the precision check.")
    return Result("fail", found, "Reinstall mujoco and mujoco-mjx at the versions tested.")


def check_brax() -> Result:
    """brax's building blocks, and its generalized advantage estimation on two steps worked out by hand."""
    modules = "acting", "distribution", "acme.running_statistics", "agents.ppo.losses", "agents.ppo.networks"
    for module in modules:
        importlib.import_module(f"brax.training.{module}")
    importlib.import_module("brax.envs.wrappers.training")
    losses = importlib.import_module("brax.training.agents.ppo.losses")
    zeros = np.zeros((2, 1), np.float32)
    rewards, values = np.array([[1.0], [2.0]], np.float32), np.array([[0.5], [0.4]], np.float32)
    bootstrap = np.array([0.3], np.float32)
    targets, advantages = losses.compute_gae(zeros, zeros, rewards, values, bootstrap, lambda_=0.8, discount=0.9)
    # With γ = 0.9 and λ = 0.8 the errors are δ₁ = 2 + 0.9·0.3 - 0.4 = 1.87 and δ₀ = 1 + 0.9·0.4 - 0.5 = 0.86. The value
    # targets are v₁ + δ₁ = 2.27 and v₀ + δ₀ + 0.72·δ₁ = 2.7064; brax's advantages are r + γ·(next target) - v.
    expected = [2.7064, 2.27, 1 + 0.9 * 2.27 - 0.5, 1.87]
    worst = float(np.abs(np.concatenate([targets, advantages])[:, 0] - expected).max())
    if worst > 1e-5:
        return Result("fail", f"GAE is wrong by {worst:.1e} in a case of two steps", 'pip install "brax==0.14.2"')
    return Result("pass", "building blocks import, GAE is right")


def check_environment(name: str = "cart-pole-balance") -> Result:
    """An environment resets and steps, compiled."""
    import jax
    import jax.numpy as jnp

    from galvanax import envs

    env = envs.load(name)
    step = jax.jit(env.step)
    state = first = jax.jit(env.reset)(jax.random.key(0))
    for _ in range(3):
        state = step(state, jnp.full(env.action_size, 0.5))
    seen = (state.obs, state.reward, state.done, state.data.qpos, state.data.qvel)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(seen)):
        return Result("fail", f"{name}: not finite after 3 steps: obs {state.obs}", "See the mjx check.")
    if np.array_equal(first.data.qpos, state.data.qpos):
        return Result("fail", f"{name} doesn't move in 3 steps", "See the mjx check.")
    return Result("pass", f"{name}: 3 compiled steps, finite, reward {float(state.reward):.3f}")


def check_orbax() -> Result:
    """A small checkpoint, saved and loaded in a temporary folder."""
    import jax.numpy as jnp
    from orbax.checkpoint import v1 as ocp

    tree: dict[str, Any] = {"weights": jnp.arange(6.0).reshape(2, 3), "deeper": {"count": np.array([3, 4])}}
    with tempfile.TemporaryDirectory() as folder:
        ocp.save(Path(folder).resolve() / "checkpoint", tree)
        loaded = ocp.load(Path(folder).resolve() / "checkpoint", tree)
    pairs = [(tree["weights"], loaded["weights"]), (tree["deeper"]["count"], loaded["deeper"]["count"])]
    if not all(np.array_equal(saved, back) for saved, back in pairs):
        return Result("fail", "a checkpoint loads as something else", "Reinstall orbax-checkpoint.")
    return Result("pass", "a checkpoint saves and loads the same")


def check_rendering() -> Result:
    """A picture of a bundled model and a film of it. Training needs neither: what goes wrong is a warning."""
    try:
        from galvanax.physics.models import load_model
        from galvanax.rendering.renderer import ADVICE, render_frames, start_gl
        from galvanax.rendering.video import write_video
    except ImportError as error:
        return Result("warn", f"{type(error).__name__}: {error}", "Films and pictures need it; training doesn't.")
    try:
        backend = start_gl()
        frames = render_frames(load_model("pendulum"), np.linspace(0, 1, 4)[:, None], width=64, height=48)
    except Exception as error:
        return Result("warn", str(error).removesuffix(ADVICE).strip(), f"Training works without. {ADVICE}")
    if frames[0].std() == 0:
        return Result(
            "warn", f"{backend} draws, but the picture is all one colour", f"Training works without. {ADVICE}"
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_video(Path(folder) / "film.mp4", frames, 25)
    except Exception as error:
        return Result(
            "warn", f"{backend} draws, but no mp4: {error}", 'pip install --force-reinstall "imageio[ffmpeg]"'
        )
    return Result("pass", f"{backend} draws a pendulum, ffmpeg films it")


def check_precision() -> Result:
    """How exact a product of float32 matrices is here, and the settings that decide it."""
    import jax
    import jax.numpy as jnp

    setting: Any = jax.config
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    product = np.asarray(jax.jit(jnp.matmul)(a, b))
    error = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
    chosen = setting.jax_default_matmul_precision
    found = f"a float32 matmul is off by {error:.0e} (jax_default_matmul_precision={chosen}"
    found += f", jax_enable_x64={setting.jax_enable_x64})"
    if error > ROUGH_MATMUL:
        return Result(
            "warn",
            found,
            "TF32 or less, which is fine for networks. For physics set JAX_DEFAULT_MATMUL_PRECISION=highest, or "
            'jax.config.update("jax_default_matmul_precision", "highest").',
        )
    return Result("pass", found)


def check_compile_cache() -> Result:
    """The folder of compiled programs."""
    import jax

    setting: Any = jax.config
    folder = setting.jax_compilation_cache_dir
    if not folder or not setting.jax_enable_compilation_cache:
        return Result("warn", "off: every start compiles anew", "Unset JAX_ENABLE_COMPILATION_CACHE.")
    if "://" in folder:
        return Result("pass", f"{folder}, not looked into")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    except OSError as error:
        return Result(
            "warn",
            f"{folder} can't be written to: {error.strerror or error}; every start compiles anew",
            "Set JAX_COMPILATION_CACHE_DIR, or XDG_CACHE_HOME, to a folder of yours.",
        )
    entries, size = sum(name.endswith("-cache") for name in sizes), sum(sizes.values())
    found = f"{folder}: {entries} programs, {_gib(size)}"
    if size > LARGE_CACHE:
        return Result("warn", found, f"jax deletes none of it. rm -r {folder} is safe while nothing compiles.")
    return Result("pass", found)


def check_machine() -> Result:
    """Processors, memory, and the disk that holds the current folder."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory, disk = _memory(), shutil.disk_usage(Path.cwd()).free
    found = f"{cpus} CPU{'' if cpus == 1 else 's'}, {_gib(memory)} memory, {_gib(disk)} free in {Path.cwd()}"
    advice = []
    if disk < LITTLE_DISK:
        advice.append("Free disk space, or train in another folder (--run-dir): a full disk ends a run.")
    if memory < LITTLE_MEMORY:
        advice.append("Take a machine with more memory: compiling a robot's physics alone can need 2 GiB.")
    return Result("warn" if advice else "pass", found, " ".join(advice))


def check_optional() -> Result:
    """Packages that Galvanax only uses where they are installed."""
    ranges = {requirement.name: requirement for requirement in _requirements(optional=True)}
    found, advice = [], []
    for name, purpose in OPTIONAL.items():
        version = _version(name)
        if version is None:
            found.append(f"{name} not installed (needed for {purpose})")
            continue
        found.append(f"{name} {version}")
        if name in ranges and not ranges[name].specifier.contains(version, prereleases=True):
            advice.append(f'pip install "{_plain(ranges[name])}"')
    return Result("warn" if advice else "pass", "; ".join(found), "; ".join(advice))


CHECKS: dict[str, Callable[[], Result]] = {
    "versions": check_versions,
    "devices": check_devices,
    "jit": check_jit,
    "mjx": check_mjx,
    "brax": check_brax,
    "environment": check_environment,
    "orbax": check_orbax,
    "rendering": check_rendering,
    "precision": check_precision,
    "compile-cache": check_compile_cache,
    "machine": check_machine,
    "optional": check_optional,
}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(optional: bool = False) -> list[Requirement]:
    """What pyproject.toml asks for, as it was installed: always, or (`optional`) by an extra."""
    parsed = [Requirement(line) for line in importlib.metadata.requires("galvanax") or ()]
    return [one for one in parsed if (one.marker is not None and "extra" in str(one.marker)) == optional]


def _plain(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{_range(requirement)}"


def _range(requirement: Requirement) -> str:
    return ",".join(sorted(map(str, requirement.specifier), reverse=True))  # ">=" before "<"


def _describe(device: Any) -> str:
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return device.device_kind + (f", {_gib(limit)} for jax" if limit else "")


def _gpu_advice() -> str:
    plugins = {name: version for name in GPU_PLUGINS if (version := _version(name))}
    jaxlib = _version("jaxlib")
    if not plugins:
        return 'pip install "galvanax[gpu]" (CUDA 12), or "galvanax[gpu-cuda13]" for CUDA 13.'
    for name, version in plugins.items():
        if version != jaxlib:
            return f'{name} {version} does not fit jaxlib {jaxlib}: pip install --upgrade "galvanax[gpu]".'
    import jax

    try:
        jax.devices("cuda")
    except RuntimeError as error:
        said = f": {error}"
    else:
        said = ""
    return f"{', '.join(plugins)} is installed but doesn't start; is the driver too old (nvidia-smi)?{said}"


def _memory() -> int:
    """Bytes of memory, or of what a container may use of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = limit.read_text().strip() if limit.is_file() else ""
        if text.isdigit():  # "max" where there is none
            memory = min(memory, int(text))
    return memory


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
