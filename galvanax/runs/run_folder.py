"""A run's folder: its name, what lies in it, and when a new run may have it."""

import shutil
from pathlib import Path
from typing import Any

from galvanax.errors import CheckpointError, ConfigError, RunDirError, nearest
from galvanax.files import describe_os_error, make_folder, read_json, replace, write_json

CONFIG, CHECKPOINTS = "config.json", "checkpoints"
LOGS = ("metrics.csv", "tensorboard", "evaluations", "videos", "play", "wandb", "damaged")
DOOMED = ".deleted-"  # prefix of what a kill may have left half deleted


def run_path(run_dir: str | Path) -> Path:
    """A run's folder as a path, `~` expanded.

    Raises:
      ConfigError: no checkpoint could be read from there.
    """
    path = Path(run_dir).expanduser()
    if "\\" in str(path.absolute()):
        raise ConfigError(
            f"run_dir={str(run_dir)!r} has a backslash, which the arrays' files can't have in their name: "
            f"expected such as {str(run_dir).replace(chr(92), '-')!r}."
        )
    return path


def find_run(run_dir: str | Path) -> Path:
    """The folder of a run that is there.

    Raises:
      CheckpointError: it is not; names the nearest ones.
    """
    path = run_path(run_dir)
    if not path.is_dir():
        others = [str(entry) for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
        raise CheckpointError(f"There is no run folder {run_dir}.{nearest(str(run_dir), others)}")
    return path


def read_config(run_dir: Path) -> dict[str, Any]:
    """A run's `config.json`: its parts `task`, `data` and `trainer`, each a record, `callbacks` and `versions`.

    Raises:
      RunDirError: there is none, or it can't be read; names it.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        runs = [str(entry.parent) for entry in run_dir.parent.glob(f"*/{CONFIG}")] if run_dir.parent.is_dir() else []
        raise RunDirError(f"{run_dir} holds no run: there is no {CONFIG} in it.{nearest(str(run_dir), runs)}")
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise RunDirError(f"{path} can't be read: {error}.") from error
    for part in ("task", "data", "trainer"):
        if not isinstance(config.get(part), dict):
            raise RunDirError(f"{path} is damaged: {part!r} is {type(config.get(part)).__name__}; expected an object.")
    return config


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Writes `config.json`."""
    write_json(run_dir / CONFIG, config)


def holdings(run_dir: Path) -> list[str]:
    """What a folder has of a run that would be lost if another began there."""
    kept = run_dir / CHECKPOINTS
    names = [name for name in (CONFIG, "metrics.csv") if (run_dir / name).exists()]
    return names + ([f"{CHECKPOINTS}/"] if kept.is_dir() and any(_visible(kept)) else [])


def check_free(run_dir: str | Path | None) -> None:
    """Raises RunDirError where a folder holds a run."""
    if run_dir is not None and (found := holdings(run_path(run_dir))):
        raise RunDirError(
            f'{run_dir} holds another run ({", ".join(found)}). Continue it with resume="last" (--resume), delete it '
            "with overwrite=True (--overwrite), or choose another run_dir."
        )


def prepare_folder(run_dir: Path, clear: bool) -> None:
    """Makes a run's folder; with `clear`, deletes the run that it holds.

    Raises:
      RunDirError: the system doesn't let us, or config.json is a folder.
    """
    if not clear and (run_dir / CONFIG).is_dir():  # it could not be written, once the logs are cut
        raise RunDirError(f"{run_dir / CONFIG} is a folder; expected a file. Move it away.")
    try:
        make_folder(run_dir)
        for doomed in run_dir.glob(f"{DOOMED}*"):
            delete(doomed)
        # First under other names, checkpoints before all: a kill leaves nothing that looks whole and is not.
        for name in (CHECKPOINTS, CONFIG, *LOGS) if clear and holdings(run_dir) else ():
            if (run_dir / name).exists():
                replace(run_dir / name, run_dir / f"{DOOMED}{name}")
        for doomed in run_dir.glob(f"{DOOMED}*"):
            delete(doomed)
    except OSError as error:
        raise RunDirError(f"{run_dir} can't be made ready: {describe_os_error(error, run_dir)}.") from error


def delete(path: Path) -> None:
    """Deletes a file, a link, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
