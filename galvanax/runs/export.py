"""A run's weights as one file, for other programs and other runs."""

from pathlib import Path

from galvanax.runs.weights import read_weights, write_weights


def export_safetensors(run_dir: str | Path, path: str | Path, checkpoint: str | Path = "best") -> Path:
    """Writes the weights that evaluation uses to a safetensors file.

    Its arrays are named by their paths in the model, `params/layers/0/kernel` and `variables/norm/mean`; its metadata
    `task`, `step`, `versions`, `history` (the last row that was logged) and `checksums` are JSON. `WarmStart` reads it,
    as does `safetensors.numpy.load_file`.

    Args:
      run_dir: the run's folder, or a checkpoint's.
      path: the file to write; one that is there is replaced, once the new one is whole.
      checkpoint: `"best"`, `"last"`, a step or a checkpoint's path.

    Returns:
      The path.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      ConfigError: the file cannot be written.
    """
    write_weights(Path(path), read_weights(run_dir, checkpoint))
    return Path(path)
