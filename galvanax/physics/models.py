"""MuJoCo models, by the name of a bundled robot or from a file of the user's."""

import importlib.resources
from collections.abc import Callable
from pathlib import Path

import mujoco

from galvanax.errors import DataError, nearest


def bundled_models() -> dict[str, Path]:
    """The MJCF files that come with the library, by name."""
    folder = Path(str(importlib.resources.files("galvanax"))) / "envs" / "robots"
    return {path.stem: path for path in sorted(folder.glob("*.xml"))}


def load_model(name_or_path: str | Path, edit: Callable[[mujoco.MjSpec], None] | None = None) -> mujoco.MjModel:
    """Compiles a bundled model or an MJCF file.

    Args:
      name_or_path: The name of a bundled model (`"pendulum"`) or a path to an XML file.
      edit: changes the model's specification before it is compiled.

    Raises:
      DataError: neither a bundled name nor a file; or MuJoCo can't compile the file: the message names it and holds
        MuJoCo's own.
    """
    bundled = bundled_models()
    path = bundled.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        known = nearest(Path(name_or_path).stem, bundled)
        raise DataError(f"No MuJoCo model {str(name_or_path)!r}: it is neither a file nor a bundled name.{known}")
    try:
        if edit is None:
            return mujoco.MjModel.from_xml_path(str(path))
        spec = mujoco.MjSpec.from_file(str(path))
        edit(spec)
        return spec.compile()
    except ValueError as error:
        raise DataError(f"{path}: MuJoCo can't compile this model: {error}") from error
