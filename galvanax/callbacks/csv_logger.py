"""Metrics as a table."""

import collections
import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.log_file import Backlog, LogFile, read_log
from galvanax.callbacks.run_view import RunView
from galvanax.files import check_plain
from galvanax.trainer.result import FitResult

LONGEST_LINE = 2**20  # bytes


@dataclasses.dataclass
class CSVLogger(Callback):
    """Writes `metrics.csv`: a row per `log_every` steps with training metrics, and one per validation.

    Where it can't be written, the rows wait in memory and the run goes on. A damaged one is set aside in `damaged/`.
    """

    writes_files: ClassVar[bool] = True
    one_of_a_kind: ClassVar[bool] = True
    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        self._path, self._damaged = run.run_dir / "metrics.csv", run.run_dir / "damaged"
        self._named = ["step", "epoch", *run.metric_names]
        self._columns = list(self._named)
        self._file = LogFile(self._path, self._damaged)
        self._kept: list[dict[str, str]] = []  # rows that the file is yet to be made with
        self._uncut = run.resumed
        self._resumed_at = run.step
        self._again = run.logged_again()
        self._rows: Backlog[dict[str, Any]] = Backlog(self._path, self._write_waiting)
        self._rows.flush()

    def on_train_log(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run, step, metrics)

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run, run.step, metrics)

    def on_save(self, run: RunView) -> None:
        """See `Callback`."""
        self._rows.flush()

    def on_fit_end(self, run: RunView, result: FitResult) -> None:
        """See `Callback`."""
        self._close()

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """See `Callback`."""
        self._close()

    def _write(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        epoch = step / run.steps_per_epoch if run.steps_per_epoch else ""
        self._rows.add({"step": step, "epoch": epoch, **metrics})

    def _write_waiting(self, waiting: collections.deque[dict[str, Any]]) -> None:
        if self._uncut:
            self._take(row for row in self._read() if self._is_kept(row))
            self._uncut = False
        while True:
            if not self._file.ready():
                # Under another name, then renamed: a kill at this moment loses no row.
                self._file.make(self._lines([dict(zip(self._columns, self._columns, strict=True)), *self._kept]))
                self._kept = []
            if not waiting:
                return
            if waiting[0].keys() <= set(self._columns):
                self._file.append(self._lines([waiting[0]]))
                waiting.popleft()
            else:  # a callback has added a metric: the file is made again, wider
                self._take([*self._read()], waiting[0])
                self._file.close()

    def _read(self) -> list[dict[str, str]]:
        return read_log(self._path, self._damaged, read_rows) or []

    def _is_kept(self, row: Mapping[str, str]) -> bool:
        """Whether the resumed run does not write this row again."""
        step = int(row["step"])
        if step == self._resumed_at and any(value and name.startswith(self._again) for name, value in row.items()):
            return False
        return step <= self._resumed_at

    def _take(self, rows: Iterable[dict[str, str]], *more: Mapping[str, Any]) -> None:
        """Rows to make the file with, and columns for all their names."""
        self._kept = list(rows)
        names = {name for row in (*self._kept, *more) for name in row} | set(self._columns)
        self._columns = [*self._named, *sorted(names - set(self._named))]

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    def _close(self) -> None:
        self._rows.close()
        self._file.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv`, by column; a last line that a kill cut short is left out.

    Raises:
      ValueError: it is damaged; says where.
      OSError: it can't be read.
    """
    check_plain(path)
    with path.open("rb") as file:
        lines = csv.reader(_whole_lines(file), strict=True)
        try:
            header = next(lines, [])
            if "step" not in header:
                raise ValueError(f"its first line is {','.join(header)[:60]!r}; expected a header such as step,epoch")
            doubled = [name for name, count in collections.Counter(header).items() if count > 1]
            if doubled:
                raise ValueError(f"it has several columns {doubled[0][:60]!r}")
            rows = []
            for cells in lines:
                row = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    raise ValueError(f"line {lines.line_num} has {len(cells)} cells; expected {len(header)}")
                if not (row["step"].isdecimal() and row["step"].isascii() and len(row["step"]) < 20):
                    raise ValueError(f"line {lines.line_num} has step {row['step'][:60]!r}; expected a number")
                rows.append(row)
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error
    return rows


def _whole_lines(file: IO[bytes]) -> Iterator[str]:
    number = 0
    while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
        number += 1
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise ValueError(f"line {number} holds bytes that are no text")
        yield text
    if len(line) == LONGEST_LINE:
        raise ValueError(f"line {number + 1} is longer than {LONGEST_LINE} bytes")
