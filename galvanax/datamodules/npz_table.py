"""Tables of numbers in NPZ files, left where they are until rows are asked for."""

import dataclasses
import difflib
import functools
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from galvanax.errors import DataError, nearest
from galvanax.rendering.trajectory_npz import DAMAGE

# Little beside what a process has in memory anyway; larger chunks are no faster.
CHUNK_BYTES = 4 << 20

# Beyond what np.load meets: encrypted archives and headers that are no Python literal.
_DAMAGE = (*DAMAGE, RuntimeError, SyntaxError, tokenize.TokenError)


@dataclasses.dataclass(frozen=True, eq=False)
class NpzTable:
    """Rows of numbers, one behind the other, in a file or in memory.

    Attributes:
      name: file and array, for messages.
      dtype: of the numbers as stored; they are handed out in float32.
      shape: of the array as stored; its last axis is a row.
      raw: the bytes `(rows * row_bytes,)`. Numbers in a file stand at any address, and numpy copies a whole array of
        such before it takes a few of them; it doesn't copy bytes.
      checksum: CRC-32 of what precedes the bytes in the archive's member, and of all of it; None where that was
        compared on reading.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    raw: np.ndarray
    checksum: tuple[int, int] | None = None

    @functools.cached_property
    def entries(self) -> int:
        """Numbers in a row."""
        return self.shape[-1]

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.entries * self.dtype.itemsize

    @functools.cached_property
    def rows(self) -> int:
        """How many there are."""
        return math.prod(self.shape[:-1])

    def windows(self, firsts: np.ndarray, length: int) -> np.ndarray:
        """The rows from each of `firsts` `(windows,)` on, `(windows, length, entries)`, float32."""
        count = self.rows - length + 1
        # A window is one item of so many bytes, so that it takes one copy: twice as fast as row by row.
        items = np.ndarray((count,), f"V{length * self.row_bytes}", self.raw, strides=(self.row_bytes,))
        numbers = items[firsts].view(self.dtype).reshape(-1, length, self.entries)
        return numbers.astype(np.float32, copy=False)

    def chunks(self, *, verify: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order, a few MB at a time: the number of the first, and rows `(rows, entries)` in float32.

        The pages of the file are let go of behind them, so that memory doesn't grow with the file.

        Args:
          verify: compare the bytes with the archive's checksum.

        Raises:
          DataError: they are not what was written.
        """
        step = max(1, CHUNK_BYTES // self.row_bytes)
        crc = self.checksum[0] if self.checksum else 0
        for first in range(0, self.rows, step):
            chunk = self.raw[first * self.row_bytes : (first + step) * self.row_bytes]
            if verify:
                crc = zlib.crc32(chunk.data, crc)
            with np.errstate(over="ignore"):  # float64 beyond float32 is infinite then, and seen as such
                numbers = chunk.view(self.dtype).reshape(-1, self.entries).astype(np.float32)
            self._let_go()
            yield first, numbers
        if verify and self.checksum and crc != self.checksum[1]:
            raise DataError(f"{self.name} is damaged: its checksum is not the one that the archive states.")

    def _let_go(self) -> None:
        mapping = getattr(self.raw.base, "_mmap", None)
        if mapping is not None and hasattr(mapping, "madvise"):  # Windows has none
            mapping.madvise(mmap.MADV_DONTNEED)


class NpzFile:
    """An NPZ file whose arrays are looked at in place, where nothing compressed them.

    Use it in a `with` statement; tables outlive it.

    Args:
      path: of the file.

    Raises:
      DataError: it can't be read, or is no NPZ file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
            self._bytes = np.memmap(self.path, np.uint8, "r")
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
        except _DAMAGE as error:
            raise DataError(f"{path} is no NPZ file, or not all of one: {error}.") from error
        self._members = {info.filename.removesuffix(".npy"): info for info in self._archive.infolist()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays."""
        return tuple(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def array(self, name: str) -> np.ndarray:
        """An array, read into memory.

        Raises:
          DataError: it is missing, damaged, or holds Python objects (nothing is unpickled).
        """
        self._header(name)
        try:
            with self._archive.open(self._members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                file.read()  # to the end, where zipfile compares the checksum
                return array
        except (OSError, MemoryError, *_DAMAGE) as error:
            raise DataError(f"{self._say(name)} can't be read: {error}.") from error

    def table(self, name: str) -> NpzTable:
        """An array `(..., entries)` as a table of rows: in place if it is stored uncompressed and in C order.

        Raises:
          DataError: as for `array`; or it holds no real numbers, or none at all.
        """
        dtype, shape, fortran, header = self._header(name)
        if dtype.kind not in "fiu":
            raise DataError(f"{self._say(name)} is of {dtype}; expected numbers.")
        if not shape or min(shape) < 1:
            raise DataError(f"{self._say(name)} has shape {shape}; expected rows of numbers, at least one.")
        info, size = self._members[name], math.prod(shape) * dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED or fortran:
            # Half the memory where they are float64; beyond float32 they are infinite, and seen as such.
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(self.array(name), np.float32)
            return NpzTable(self._say(name), array.dtype, shape, array.reshape(-1).view(np.uint8))
        start = self._offset(info) + len(header)
        # A slice of a np.memmap looks for overlaps with its file each time: microseconds that add up.
        raw = np.asarray(self._bytes[start : start + size])
        if len(header) + size != info.file_size or len(raw) != size:
            raise DataError(
                f"{self._say(name)}: {dtype}{list(shape)} takes {size} bytes; the archive holds "
                f"{info.file_size - len(header)}."
            )
        return NpzTable(self._say(name), dtype, shape, raw, (zlib.crc32(header), info.CRC))

    def _header(self, name: str) -> tuple[np.dtype, tuple[int, ...], bool, bytes]:
        """Type, shape, whether in Fortran's order, and the bytes before the numbers."""
        if name not in self._members:
            close = difflib.get_close_matches(name, self.names, cutoff=0.5)
            hint = nearest(name, self.names) if close else ""
            raise DataError(f"{self.path} has no array {name!r}; it has {', '.join(self.names) or 'none'}.{hint}")
        try:
            with self._archive.open(self._members[name]) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise DataError(f"{self._say(name)} is of version {version} of the NPY format; expected 1 or 2.")
                shape, fortran, dtype = _HEADERS[version](file)
                size = file.tell()
                file.seek(0)
                header = file.read(size)
        except DataError:
            raise
        except (OSError, *_DAMAGE) as error:
            raise DataError(f"{self._say(name)} can't be read: {error}.") from error
        if dtype.hasobject:
            raise DataError(
                f"{self._say(name)} holds Python objects, and nothing here is unpickled; expected one array of "
                "numbers. Trajectories of different lengths go into one, padded, with `lengths`; or into a file each."
            )
        return dtype, shape, fortran, header

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where a member's bytes start: behind a local header, whose fields differ in length from the directory's."""
        lengths = bytes(self._bytes[info.header_offset + 26 : info.header_offset + 30])
        return info.header_offset + 30 + sum(struct.unpack("<HH", lengths))

    def _say(self, name: str) -> str:
        return f"{self.path}: {name}"


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
