"""Logs of every kind, their defects one by one, and the cache."""

import logging
import math
import os
import re

import numpy as np
import polars as pl
import pytest
from datamodules.logs import names_of, text_of, values_of, write

from galvanax.datamodules.trajectory_cache import cache_folder
from galvanax.datamodules.trajectory_files import read_trajectories, read_trajectory
from galvanax.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(trajectory, values, nq=2, nv=2):
    np.testing.assert_array_equal(trajectory.timestamp, values[:, 0])
    np.testing.assert_array_equal(trajectory.states, values[:, 1 : 1 + nq + nv].astype(np.float32))
    np.testing.assert_array_equal(trajectory.actions, values[:, 1 + nq + nv :].astype(np.float32))
    assert (trajectory.timestamp.dtype, trajectory.states.dtype, trajectory.actions.dtype) == (
        np.float64, np.float32, np.float32,
    )  # fmt: skip
    assert trajectory.nq == nq


VALUES = values_of()


@pytest.mark.parametrize(
    "text",
    [
        text_of(VALUES),
        text_of(VALUES).rstrip("\n"),
        "\ufeff" + text_of(VALUES, end="\r\n"),
        text_of(VALUES, end="\r"),
        text_of(VALUES).replace("\n", "\n\n"),
        text_of(VALUES) + "\n\n",
        text_of(VALUES).replace(",", " , "),
        re.sub(r"[^,\n]+", lambda match: f'"{match[0]}"', text_of(VALUES)),
    ],
    ids=["plain", "no-last-line-end", "bom-crlf", "cr", "blank-lines", "blank-end", "spaces", "quotes"],
)
def test_csv(tmp_path, text):
    check(read_trajectory(write(tmp_path / "a.csv", text)), VALUES)


def test_columns_go_by_number(tmp_path):
    names, values = names_of(12, 12, 11), values_of(5, 36)
    order = np.random.default_rng(1).permutation(36)
    assert sorted(names).index("qpos_10") < sorted(names).index("qpos_2")
    path = write(tmp_path / "a.csv", text_of(values[:, order], [names[i] for i in order]))
    check(read_trajectory(path), values, 12, 12)


def test_other_columns_are_ignored_with_a_note(tmp_path, caplog):
    text = text_of(np.c_[VALUES[:, :3], VALUES[:, 3:]], names_of()).splitlines()
    text = [f"note,{line},é" if i == 0 else f"hello {i},{line}," for i, line in enumerate(text)]
    with caplog.at_level(logging.INFO):
        check(read_trajectory(write(tmp_path / "a.csv", "\n".join(text))), VALUES)
    assert "ignoring the columns 'note', 'é'" in caplog.text


def test_short_line_with_other_columns_does_not_shift(tmp_path):
    """One cell too few: the numbers behind it would still all be numbers."""
    lines = [f"{line},7" for line in text_of(VALUES, [*names_of()]).splitlines()]
    lines[0] = lines[0].replace(",7", ",extra")
    lines[3] = lines[3].replace(",", ";", 1).split(";")[0] + "," + ",".join(lines[3].split(",")[2:])
    with pytest.raises(DataError, match=r"a\.csv, line 4 has 6 cells; expected 7"):
        read_trajectory(write(tmp_path / "a.csv", "\n".join(lines)))
    # The same beside a line with one too many.
    lines[1] += ",7"
    with pytest.raises(DataError, match=r"a\.csv, line 2 has 8 cells; expected 7"):
        read_trajectory(write(tmp_path / "a.csv", "\n".join(lines)))


def with_cell(line, column, cell):
    lines = [row.split(",") for row in text_of(VALUES).splitlines()]
    lines[line - 1][column] = cell
    return "\n".join(map(",".join, lines))


@pytest.mark.behaviour("reports 11")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.csv is empty"),
        ("\n\n", r"a\.csv is empty"),
        (text_of(VALUES[:0]), r"a\.csv has 0 rows of numbers; expected at least 2"),
        (text_of(VALUES[:1]), r"a\.csv has 1 rows of numbers; expected at least 2"),
        (with_cell(5, 3, "abc"), r"a\.csv, line 5, column qvel_0: 'abc' is no number"),
        (with_cell(5, 3, ""), r"a\.csv, line 5, column qvel_0: the cell is empty"),
        (with_cell(5, 3, "1_0"), r"a\.csv, line 5, column qvel_0: '1_0' is no number"),
        (with_cell(5, 3, "\u0661"), r"a\.csv, line 5, column qvel_0: '\u0661' is no number"),
        (with_cell(2, 5, "NaN"), r"a\.csv, line 2, column ctrl_0: nan; expected finite numbers; 1 of 36"),
        (with_cell(7, 1, "-inf"), r"a\.csv, line 7, column qpos_0: -inf; expected finite"),
        (with_cell(3, 0, "nan"), r"a\.csv, line 3, column timestamp: nan; expected finite"),
        (with_cell(3, 2, "1e400"), r"a\.csv, line 3, column qpos_1: inf; expected finite"),
        (with_cell(3, 2, "1e39"), r"a\.csv, line 3, column qpos_1: 1e\+39; expected at most 1e\+06 either way"),
        (with_cell(3, 0, "0.0"), r"a\.csv, line 3, column timestamp: 0 s after 0 s; expected times that increase"),
        (with_cell(4, 0, "0.01"), r"a\.csv, line 4, column timestamp: 0.01 s after 0.02 s; expected times"),
        (with_cell(4, 0, "0.045"), r"a\.csv, line 4, column timestamp: 0.025 s after the line before; expected about"),
        (with_cell(6, 2, "1,2"), r"a\.csv, line 6 has 7 cells; expected 6"),
        (with_cell(1, 2, "qpos_0"), r"a\.csv, line 1, column 'qpos_0' stands there twice \(columns 2 and 3\)"),
        (with_cell(1, 2, "qpos_2"), r"a\.csv, line 1, column 'qpos_1' is missing: there are qpos_0, qpos_2"),
        (with_cell(1, 2, "qpos1"), r"a\.csv, line 1, column 'qpos1': expected such as qpos_0"),
        (with_cell(1, 5, "torque"), r"a\.csv, line 1, column 'ctrl_0' is missing: none is there"),
        (with_cell(1, 0, "timestmp"), r"a\.csv, line 1, column 'timestamp' is missing. Nearest: timestmp"),
        (with_cell(1, 0, "t") .replace("torque", ""), r"column 'timestamp' is missing"),
        (text_of(VALUES, ["timestamp", *names_of()[:5]]), r"column 'timestamp' stands there 2 times"),
        (text_of(VALUES).replace(",", ";"), r"a\.csv, line 1, column 'timestamp' is missing"),
        (with_cell(4, 4, '"1'), r"a\.csv, line 4 has 5 cells; expected 6"),
        (with_cell(4, 4, "1\x00"), r"a\.csv, line 4"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_trajectory(write(tmp_path / "a.csv", text))


def test_bytes_that_are_no_text(tmp_path):
    raw = with_cell(5, 3, "X").encode().replace(b"X", b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.csv, line 5, column qvel_0: .* is no number"):
        read_trajectory(write(tmp_path / "a.csv", raw))


def test_lines_are_counted_across_blank_ones(tmp_path):
    text = with_cell(5, 3, "abc").replace("\n", "\n\n")
    with pytest.raises(DataError, match=r"line 9, column qvel_0: 'abc'"):
        read_trajectory(write(tmp_path / "a.csv", text))
    text = with_cell(4, 0, "0.0").replace("\n", "\n\n")
    with pytest.raises(DataError, match=r"line 7, column timestamp: 0 s after"):
        read_trajectory(write(tmp_path / "a.csv", text))


def test_period_tolerance(tmp_path):
    path = write(tmp_path / "a.csv", with_cell(4, 0, "0.045"))
    assert read_trajectory(path, period_tolerance=0.3).timestamp[2] == 0.045


def test_parquet(tmp_path):
    frame = pl.DataFrame(VALUES, schema=names_of(), orient="row").with_columns(pl.lit("x").alias("note"))
    frame.write_parquet(tmp_path / "a.parquet")
    check(read_trajectory(tmp_path / "a.parquet"), VALUES)
    frame.with_columns(qvel_1=pl.Series([0.0, None, *range(4)])).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet, row 2, column qvel_1: the cell is empty"):
        read_trajectory(tmp_path / "b.parquet")
    frame.with_columns(qvel_1=pl.lit("1")).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet, column qvel_1: expected numbers, found String"):
        read_trajectory(tmp_path / "c.parquet")
    frame.with_columns(qvel_1=pl.Series([0.0, math.nan, *range(4)])).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet, row 2, column qvel_1: nan; expected finite"):
        read_trajectory(tmp_path / "d.parquet")
    raw = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(DataError, match=r"e\.parquet is no Parquet file"):
        read_trajectory(write(tmp_path / "e.parquet", raw[: len(raw) // 2]))
    with pytest.raises(DataError, match=r"f\.parquet"):
        read_trajectory(write(tmp_path / "f.parquet", b""))


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **dict(zip(names_of(), VALUES.T, strict=True)))
    check(read_trajectory(tmp_path / "a.npz"), VALUES)
    arrays = {"timestamp": VALUES[:, 0], "qpos": VALUES[:, 1:3], "qvel": VALUES[:, 3:5], "ctrl": VALUES[:, 5:]}
    np.savez(tmp_path / "b.npz", **arrays)
    check(read_trajectory(tmp_path / "b.npz"), VALUES)
    for name, change, message in (
        ("c", {"qvel": VALUES[:5, 3:5]}, r"c\.npz, column qvel_0 has shape \(5,\) and timestamp has \(6,\)"),
        ("d", {"timestamp": VALUES[:, :1]}, r"d\.npz, column timestamp has shape \(6, 1\)"),
        ("e", {"ctrl": np.full((6, 1), "x")}, r"e\.npz, column ctrl_0: expected numbers, found <U1"),
        ("f", {"ctrl": np.full((6, 1), None)}, r"f\.npz is no NPZ file of numbers .*allow_pickle=False"),
        ("g", {"qpos": VALUES[:, 1]}, r"g\.npz, column 'qpos': expected such as qpos_0"),
        ("h", {"qpos": VALUES[:, :0]}, r"h\.npz, column 'qpos_0' is missing: none is there"),
    ):
        np.savez(tmp_path / f"{name}.npz", **(arrays | change))
        with pytest.raises(DataError, match=message):
            read_trajectory(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match=r"i\.npz is no NPZ file"):
        read_trajectory(write(tmp_path / "i.npz", (tmp_path / "a.npz").read_bytes()[:300]))


def test_sources(tmp_path):
    for name in ("b/2.csv", "b/1.csv", "b/.hidden.csv", "b/deep/3.csv", "b/readme.txt"):
        write(tmp_path / name, text_of(VALUES))
    short = lambda found: [os.path.relpath(trajectory.name, tmp_path) for trajectory in found]  # noqa: E731
    assert short(read_trajectories(tmp_path / "b")) == ["b/1.csv", "b/2.csv"]
    assert short(read_trajectories(f"{tmp_path}/b/**/*.csv")) == ["b/1.csv", "b/2.csv", "b/deep/3.csv"]
    assert short(read_trajectories(str(tmp_path / "b" / "2.csv"))) == ["b/2.csv"]
    with pytest.raises(DataError, match=r"b/\*\.json': no file with a name that ends in \.csv, \.parquet, \.npz"):
        read_trajectories(f"{tmp_path}/b/*.json")
    with pytest.raises(DataError, match=r"/c'.*Nearest: .*/b"):
        read_trajectories(tmp_path / "c")
    with pytest.raises(DataError, match=r"readme\.txt: expected a name that ends in \.csv"):
        read_trajectories(tmp_path / "b" / "readme.txt")


def test_files_must_agree(tmp_path):
    write(tmp_path / "1.csv", text_of(VALUES))
    write(tmp_path / "2.csv", text_of(values_of(width=7), names_of(2, 2, 2)))
    with pytest.raises(DataError, match=r"2\.csv has 2 qpos, 2 qvel, 2 ctrl; .*1\.csv has 2 qpos, 2 qvel, 1 ctrl"):
        read_trajectories(tmp_path)
    write(tmp_path / "2.csv", text_of(values_of(dt=0.03)))
    with pytest.raises(DataError, match=r"2\.csv has a sampling period of 0\.03 s; .*1\.csv has 0\.02 s"):
        read_trajectories(tmp_path)


@pytest.mark.behaviour("reports 11")
@pytest.mark.parametrize(("scale", "unit"), [(1, None), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")])
@pytest.mark.parametrize("dt", [0.02, 0.001])
def test_times_that_are_no_seconds(tmp_path, caplog, scale, unit, dt):
    values = values_of(dt=dt)
    values[:, 0] *= scale
    write(tmp_path / "1.csv", text_of(values))
    for _ in range(2):  # from the cache as well
        caplog.clear()
        read_trajectories(tmp_path)
        said = [f"sampling period of {dt * scale:.6g} s. Are its times in {unit}?"] if unit else []
        assert len(caplog.messages) == len(said)
        assert all(text in message for text, message in zip(said, caplog.messages, strict=True))


def test_cache(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "logs"
    for i in range(3):
        write(folder / f"{i}.csv", text_of(values_of(6 + i, seed=i)))

    def contents(cache=True):
        return [
            (t.name, t.nq, t.timestamp.tolist(), t.states.tolist(), t.actions.tolist())
            for t in read_trajectories(folder, cache=cache)
        ]

    truth = contents(cache=False)
    assert not cache_folder().exists()
    assert contents() == truth
    (entry,) = cache_folder().iterdir()
    # A hit reads no file: with the readers gone it still answers.
    with monkeypatch.context() as patch:
        patch.setattr("galvanax.datamodules.trajectory_files.READERS", {".csv": None})
        assert contents() == truth

    whole = entry.read_bytes()
    for damaged in (whole[:200], b"", b"x" * 500, whole[:-400] + bytes(400)):
        entry.write_bytes(damaged)
        assert contents() == truth
        assert "is damaged" in caplog.text
        caplog.clear()
    middle = whole.find(b"states.npy") + 200
    entry.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert contents() == truth
    assert "is damaged" in caplog.text

    # As many bytes, but another number.
    cell = (folder / "1.csv").read_text().splitlines()[1].split(",")[1]
    (folder / "1.csv").write_text((folder / "1.csv").read_text().replace(cell, "0.123456789"[: len(cell)]))
    os.utime(folder / "1.csv", ns=(1, 1))
    assert contents()[1] != truth[1]
    write(folder / "3.csv", text_of(values_of(9)))
    assert len(contents()) == 4
    assert len(list(cache_folder().iterdir())) == 1
    write(folder / "3.csv", with_cell(4, 0, "0.045"))
    with pytest.raises(DataError, match="line 4"):
        contents()


def test_cache_folder_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    write(tmp_path / "file", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write(tmp_path / "a.csv", text_of(VALUES))
    check(read_trajectories(tmp_path / "a.csv")[0], VALUES)
    assert "Can't keep" in caplog.text
