"""Metrics as a table."""

import csv
import dataclasses
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from galvanax.callbacks.callback import Callback

if TYPE_CHECKING:
    from galvanax.trainer.run import FitResult, Run


@dataclasses.dataclass
class CSVLogger(Callback):
    """Writes `metrics.csv`: a row per `log_every` steps with training metrics, and one per validation."""

    writes_files: ClassVar[bool] = True
    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, run: "Run") -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        path = run.run_dir / "metrics.csv"
        columns = ["step", "epoch", *run.metric_names]
        kept = _rows_until(path, run.step) if run.resumed else []
        columns += sorted({name for row in kept for name in row} - set(columns))
        # Written anew under another name, then renamed: a kill at this moment loses no row.
        partial = path.with_suffix(".partial")
        self._file: IO[str] = partial.open("w", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, columns, restval="", lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(kept)
        partial.replace(path)

    def on_train_log(self, run: "Run", step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run, step, metrics)

    def on_validation_end(self, run: "Run", metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run, run.step, metrics)

    def on_fit_end(self, run: "Run", result: "FitResult") -> None:
        """See `Callback`."""
        self._file.close()

    def on_exception(self, run: "Run", error: BaseException) -> None:
        """See `Callback`."""
        self._file.close()

    def _write(self, run: "Run", step: int, metrics: dict[str, float]) -> None:
        epoch = step / run.steps_per_epoch if run.steps_per_epoch else ""
        self._writer.writerow({"step": step, "epoch": epoch, **metrics})


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        # A last line that a kill cut short lies behind the checkpoint's step, or is not a number.
        return [row for row in csv.DictReader(file) if (row["step"] or "").isdigit() and int(row["step"]) <= step]
