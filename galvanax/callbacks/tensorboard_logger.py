"""Metrics for TensorBoard."""

import collections
import dataclasses
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.log_file import Backlog, LogFile, read_log, write_whole
from galvanax.callbacks.run_view import RunView
from galvanax.trainer.result import FitResult

LENGTH, CHECKSUM, MOST_ZEROS = 8, 4, 2**20  # bytes


@dataclasses.dataclass
class TensorBoardLogger(Callback):
    """Writes event files to `run_dir/tensorboard`: all metrics, and the speed in steps a second.

    Where they can't be written, events wait in memory and the run goes on. A damaged file is set aside in `damaged/`.
    """

    writes_files: ClassVar[bool] = True
    one_of_a_kind: ClassVar[bool] = True
    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        assert run.run_dir is not None
        self._folder, self._damaged = run.run_dir / "tensorboard", run.run_dir / "damaged"
        self._uncut = run.resumed
        self._resumed_at = run.step
        self._again = run.logged_again()
        # Not tensorboardX's writer: it can't go on after an error, and its flush leaves what is still in its queue. The
        # number is there since two files of the same second would have one name.
        stem = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        paths = (self._folder / f"{stem}.{number}" for number in itertools.count())
        path = next(free for free in paths if not os.path.lexists(free))
        self._file = LogFile(path, self._damaged)
        self._events: Backlog[bytes] = Backlog(path, self._write_waiting)
        self._events.flush()
        self._last = (run.step, time.monotonic())

    def on_train_log(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        (last_step, last_time), self._last = self._last, (step, time.monotonic())
        speed = (step - last_step) / max(1e-9, self._last[1] - last_time)
        self._write(step, {**metrics, "speed/steps_per_second": speed})

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._write(run.step, metrics)

    def on_save(self, run: RunView) -> None:
        """See `Callback`."""
        self._events.flush()

    def on_fit_end(self, run: RunView, result: FitResult) -> None:
        """See `Callback`."""
        self._close()

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """See `Callback`."""
        self._close()

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        now = time.time()
        events = (Event(wall_time=now, step=step, summary=scalar(name, value)) for name, value in metrics.items())
        self._events.add(b"".join(map(_record, events)))

    def _write_waiting(self, waiting: collections.deque[bytes]) -> None:
        if self._uncut:
            self._cut_all()
            self._uncut = False
        if not self._file.ready():
            self._folder.mkdir(exist_ok=True)
            self._file.make(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        while waiting:
            self._file.append(waiting[0])
            waiting.popleft()

    def _cut_all(self) -> None:
        """Takes what the resumed run writes again out of the files that are there."""
        for path in read_log(self._folder, self._damaged, _event_files) or ():
            kept = read_log(path, self._damaged, self._kept)
            if kept is not None and len(kept) != path.stat().st_size:
                write_whole(path, kept)

    def _kept(self, path: Path) -> bytes:
        return b"".join(record for record, event in _records(path) if self._is_kept(event))

    def _is_kept(self, event: Event) -> bool:
        if event.step == self._resumed_at and any(value.tag.startswith(self._again) for value in event.summary.value):
            return False
        return event.step <= self._resumed_at

    def _close(self) -> None:
        self._events.close()
        self._file.close()


def _event_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("events."))


def _record(event: Event) -> bytes:
    """As in a file: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _records(path: Path) -> Iterator[tuple[bytes, Event]]:
    """The whole records of a file, and what is in them; not a last one that a kill cut short.

    Raises:
      ValueError: the file is damaged; says where.
      OSError: it can't be read.
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left >= LENGTH + CHECKSUM:
            start = file.tell()
            head = file.read(LENGTH + CHECKSUM)
            (length,) = struct.unpack_from("<Q", head)
            if not _is_intact(head):
                if not (head + file.read(MOST_ZEROS)).strip(b"\0") and not file.read(1):
                    return  # a power cut leaves zeros
                raise ValueError(f"the record at byte {start} has no length that fits its checksum")
            left -= len(head) + length + CHECKSUM
            if left < 0:
                return
            body = file.read(length + CHECKSUM)
            if not _is_intact(body):
                raise ValueError(f"the record at byte {start} doesn't fit its checksum")
            try:
                yield head + body, Event.FromString(body[:-CHECKSUM])
            except DecodeError as error:
                raise ValueError(f"the record at byte {start} is no event: {error}") from error


def _is_intact(data: bytes) -> bool:
    return data[-CHECKSUM:] == struct.pack("<I", masked_crc32c(data[:-CHECKSUM]))
