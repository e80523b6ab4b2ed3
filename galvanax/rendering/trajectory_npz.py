"""A motion and the model that made it, in one NPZ file that replays anywhere."""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from galvanax.errors import DataError, nearest
from galvanax.files import partial_file
from galvanax.physics.models import bundled_models, load_model

# As in logs, so that a saved trajectory with controls can be trained on (`galvanax.read_trajectories`).
TIME = "timestamp"
MODEL_KEYS = ("nq", "joint_names", "model_name", "model_xml", "model_binary", "mujoco_version")
STATE_KEYS = ("qpos", "qvel", "ctrl")

# What numpy and zipfile raise about files that are no whole NPZ.
DAMAGE = (ValueError, KeyError, EOFError, NotImplementedError, AttributeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True, eq=False)
class MotionClip:
    """A motion of a MuJoCo model.

    Attributes:
      model: what moves.
      qpos: positions `(steps, nq)`, in MuJoCo's layout and units.
      time: `(steps,)` (s), increasing.
      qvel: velocities `(steps, nv)`, or None.
      ctrl: controls `(steps, nu)`, each from its step to the next, or None.
      extra: other arrays `(steps, ...)` by name, such as rewards.
      xml: the model as MJCF, where known; it outlives the version of MuJoCo.
    """

    model: mujoco.MjModel
    qpos: np.ndarray
    time: np.ndarray
    qvel: np.ndarray | None = None
    ctrl: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    xml: str | None = None

    def __post_init__(self) -> None:
        """Checks every array.

        Raises:
          DataError: an array has another shape than the model's, holds no numbers, or holds NaN; names it.
        """
        self._set("qpos", check_poses("qpos", self.qpos, self.model))
        steps = len(self.qpos)
        for name, width in (("qvel", self.model.nv), ("ctrl", self.model.nu)):
            if getattr(self, name) is not None:
                self._set(
                    name,
                    _check(name, getattr(self, name), (steps, width), f"(as many as qpos has; {width} in the model)"),
                )
        time = _check("time", self.time, (steps,), "(one for each row of qpos)")
        self._set("time", time)
        if (np.diff(time) <= 0).any():
            row = int(np.argmax(np.diff(time) <= 0)) + 1
            raise DataError(f"time[{row}] = {time[row]:g} s follows {time[row - 1]:g} s; expected it to increase.")
        for name, array in self.extra.items():
            if name in (*MODEL_KEYS, *STATE_KEYS, TIME, "time"):
                raise DataError(f"{name!r} can't be the name of an extra array: the file uses it.")
            array = np.asarray(array)
            if array.dtype.kind not in "biuf" or array.shape[:1] != (steps,):
                raise DataError(
                    f"{name} is {array.dtype}{list(array.shape)}; expected numbers ({steps}, ...), as many as qpos has."
                )
        self._set("extra", {name: np.asarray(array) for name, array in self.extra.items()})

    @property
    def dt(self) -> float:
        """Seconds from a step to the next, the median; the model's timestep where there is one step."""
        return float(np.median(np.diff(self.time))) if len(self.time) > 1 else float(self.model.opt.timestep)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the model's joints, in the order of qpos; empty where a joint has none."""
        return tuple(self.model.joint(number).name for number in range(self.model.njnt))

    def save(self, path: str | Path) -> None:
        """Writes the file that `load_trajectory` reads. See `save_trajectory`."""
        binary = np.zeros(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, binary)
        arrays: dict[str, Any] = {name: getattr(self, name) for name in STATE_KEYS if getattr(self, name) is not None}
        with partial_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                **arrays,
                **{TIME: self.time},
                **self.extra,
                nq=np.int64(self.model.nq),
                joint_names=np.array(self.joint_names, np.str_),
                model_name=np.str_(model_name(self.model)),
                model_xml=np.str_(self.xml or ""),
                model_binary=binary,
                mujoco_version=np.str_(mujoco.__version__),
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen for its users


def save_trajectory(
    path: str | Path,
    model: mujoco.MjModel | mujoco.MjSpec | str | Path,
    qpos: np.ndarray,
    qvel: np.ndarray | None = None,
    ctrl: np.ndarray | None = None,
    time: np.ndarray | None = None,
    **extra: np.ndarray,
) -> MotionClip:
    """Writes a motion with its model.

    The file holds `qpos`, `qvel`, `ctrl`, `timestamp` (s), the extra arrays, `nq`, `joint_names`, and the model: in
    MuJoCo's binary form, with meshes and textures, for this version of MuJoCo; and as MJCF, for every other, where the
    model is given as a spec, a path or a bundled name.

    Args:
      path: of the NPZ file.
      model: a compiled model, a spec, a bundled name or the path of an MJCF file.
      qpos: `(steps, nq)`.
      qvel: `(steps, nv)`.
      ctrl: `(steps, nu)`.
      time: `(steps,)` (s); None for a row each `model.opt.timestep`.
      **extra: other arrays `(steps, ...)`.

    Raises:
      DataError: an array doesn't fit the model, or the file can't be written.
    """
    xml = None
    if isinstance(model, str | Path):
        path_of_model = bundled_models().get(str(model), Path(model))
        model = load_model(model)  # for its errors
        # Through a spec: included files become part of the text.
        xml = mujoco.MjSpec.from_file(str(path_of_model)).to_xml()
    elif isinstance(model, mujoco.MjSpec):
        model, xml = model.compile(), model.to_xml()
    if time is None:
        time = np.arange(len(qpos)) * model.opt.timestep
    clip = MotionClip(model, qpos, time, qvel, ctrl, extra, xml)
    clip.save(path)
    return clip


def load_trajectory(path: str | Path, model: mujoco.MjModel | None = None) -> MotionClip:
    """Reads what `save_trajectory` wrote.

    Args:
      path: of the NPZ file.
      model: replay on this model instead of the file's.

    Raises:
      DataError: the file can't be read, lacks an array, or holds one that doesn't fit its model; names file and array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise DataError(f"{path} is no NPZ file of numbers that can be read: {error}") from error
    for name in ("qpos", TIME):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; it has {', '.join(arrays)}.{nearest(name, arrays)}")
    if model is None:
        model = _read_model(path, arrays)
    extra = {name: a for name, a in arrays.items() if name not in (*MODEL_KEYS, *STATE_KEYS, TIME)}
    xml = str(arrays["model_xml"]) if "model_xml" in arrays else None
    try:
        return MotionClip(
            model, arrays["qpos"], arrays[TIME], arrays.get("qvel"), arrays.get("ctrl"), extra, xml or None
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def check_poses(name: str, qpos: np.ndarray, model: mujoco.MjModel) -> np.ndarray:
    """`qpos` as float64 `(steps, nq)`.

    Raises:
      DataError: it has another shape, or isn't finite.
    """
    qpos = np.asarray(qpos)
    steps = len(qpos) if qpos.ndim == 2 else None
    if not steps:
        raise DataError(f"{name} has shape {qpos.shape}; expected (steps, {model.nq}), with at least one step.")
    return _check(name, qpos, (steps, model.nq), f"(nq of the model {model_name(model)!r})")


def model_name(model: mujoco.MjModel) -> str:
    """The name that the MJCF gives the model."""
    return bytes(model.names).split(b"\0", 1)[0].decode()


def _check(name: str, array: Any, shape: tuple[int, ...], meaning: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} is of {array.dtype}; expected numbers.")
    if array.shape != shape:
        raise DataError(f"{name} has shape {array.shape}; expected {shape} {meaning}.")
    if not np.isfinite(array).all():
        place = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
        raise DataError(f"{name}[{', '.join(map(str, place))}] is {array[place]}; expected finite numbers.")
    return array.astype(np.float64)


def _read_model(path: str | Path, arrays: dict[str, np.ndarray]) -> mujoco.MjModel:
    tried = []
    for read in (_from_binary, _from_xml, _from_name):
        try:
            model = read(arrays)
        except (ValueError, KeyError) as error:  # MuJoCo's, and DataError
            tried.append(str(error))
            continue
        if "nq" not in arrays or model.nq == int(arrays["nq"]):
            return model
        tried.append(f"{read.__name__}: nq is {model.nq}")
    raise DataError(
        f"{path} holds no model that MuJoCo {mujoco.__version__} can read ({'; '.join(tried)}). "
        "Give one: load_trajectory(path, model=...)."
    )


def _from_binary(arrays: dict[str, np.ndarray]) -> mujoco.MjModel:
    if str(arrays["mujoco_version"]) != mujoco.__version__:
        raise ValueError(f"its binary model is of MuJoCo {arrays['mujoco_version']}")
    return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": arrays["model_binary"].tobytes()})


def _from_xml(arrays: dict[str, np.ndarray]) -> mujoco.MjModel:
    if not str(arrays["model_xml"]):
        raise ValueError("it has no MJCF")
    return mujoco.MjModel.from_xml_string(str(arrays["model_xml"]))


def _from_name(arrays: dict[str, np.ndarray]) -> mujoco.MjModel:
    name = str(arrays["model_name"])
    if name not in bundled_models():
        raise ValueError(f"no bundled model is named {name!r}")
    return load_model(name)
