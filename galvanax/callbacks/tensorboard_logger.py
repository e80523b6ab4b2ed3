"""Metrics for TensorBoard."""

import dataclasses
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from galvanax.callbacks.callback import Callback
from galvanax.partial_file import partial_file

if TYPE_CHECKING:
    from galvanax.trainer.run import FitResult, Run


@dataclasses.dataclass
class TensorBoardLogger(Callback):
    """Writes event files to `run_dir/tensorboard`: all metrics, and the speed in steps a second."""

    writes_files: ClassVar[bool] = True
    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, run: "Run") -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        folder = run.run_dir / "tensorboard"
        if run.resumed:
            for path in folder.glob("events.*"):
                _cut(path, run.step)
        folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its flush leaves what is still in its queue, and a save must find all rows on the disk. The
        # number is there since two files of the same second would have one name.
        number = len(list(folder.glob("events.*")))
        self._writer: EventsWriter | None = EventsWriter(str(folder / "events"), f".{number}")
        self._last = (run.step, time.monotonic())

    def on_train_log(self, run: "Run", step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(step, metrics)
        (last_step, last_time), self._last = self._last, (step, time.monotonic())
        self._write(step, {"speed/steps_per_second": (step - last_step) / max(1e-9, self._last[1] - last_time)})

    def on_validation_end(self, run: "Run", metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run.step, metrics)

    def on_save(self, run: "Run") -> None:
        """See `Callback`."""
        if self._writer is not None:  # the last save comes after the end
            self._writer.flush()

    def on_fit_end(self, run: "Run", result: "FitResult") -> None:
        """See `Callback`."""
        self._close()

    def on_exception(self, run: "Run", error: BaseException) -> None:
        """See `Callback`."""
        self._close()

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        assert self._writer is not None
        for name, value in metrics.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _cut(path: Path, step: int) -> None:
    """Takes the events after `step`, which a resumed run writes again, and a half-written last one, out of a file.

    A file is a row of records: length (8 bytes), its checksum (4), an Event, its checksum (4).
    """
    data, kept, at = path.read_bytes(), bytearray(), 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at : at + 12 + length + 4]
        if len(record) < 12 + length + 4:
            break
        if Event.FromString(record[12:-4]).step <= step:
            kept += record
        at += len(record)
    with partial_file(path) as partial:
        partial.write_bytes(kept)
