"""A thousand damaged CSV files. What a reading should be comes from Python's csv and float."""

import csv
import io
import math
import random
import re

import numpy as np
import pytest
from datamodules.logs import names_of, values_of, write

from galvanax.datamodules.trajectory_files import read_trajectory
from galvanax.errors import DataError

# Mutations: (rng, lines as lists of cells) -> bytes.


def join(rows, end="\n"):
    return (end.join(map(",".join, rows)) + end).encode()


def any_cell(rng, rows):
    return rows[rng.randrange(1, len(rows))], rng.randrange(len(rows[0]))


def set_cell(rng, rows, cell):
    row, column = any_cell(rng, rows)
    row[column] = cell
    return join(rows)


def text_in_number(rng, rows):
    words = [
        "abc",
        "1.2.3",
        "0x1F",
        "1,5",
        "--2",
        "1e",
        "1_000",
        "true",
        "None",
        "null",
        "#REF!",
        "1 2",
        "",
        " ",
        "²",
        "1.5m",
    ]
    return set_cell(rng, rows, rng.choice(words))


def not_a_number(rng, rows):
    return set_cell(rng, rows, rng.choice(["nan", "NaN", "-nan", "NAN"]))


def infinite(rng, rows):
    return set_cell(rng, rows, rng.choice(["inf", "-inf", "Infinity", "+INF", "1e999"]))


def huge(rng, rows):
    return set_cell(
        rng, rows, rng.choice(["1e38", "-3.5e38", "1e39", "1e300", "-123456789012345678901234567890", "1e7"])
    )


def missing_columns(rng, rows):
    for column in sorted(rng.sample(range(len(rows[0])), rng.randrange(1, 4)), reverse=True):
        for row in rows:
            del row[column]
    return join(rows)


def empty(rng, rows):
    return rng.choice([b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", join(rows[:1]), join(rows[:1])[:-1], b" "])


def one_row(rng, rows):
    return join(rows[:2])


def ragged(rng, rows):
    for _ in range(rng.randrange(1, 3)):
        row = rows[rng.randrange(len(rows))]
        column = rng.randrange(len(row))
        if rng.random() < 0.5:
            del row[column]
        else:
            row.insert(column, "0.5")
    return join(rows)


def wrong_order(rng, rows):
    order = list(range(len(rows[0])))
    rng.shuffle(order)
    return join([[row[i] for i in order] for row in rows])


def bom_and_line_ends(rng, rows):
    return rng.choice([b"", b"\xef\xbb\xbf"]) + join(rows, rng.choice(["\r\n", "\n\n", "\r", "\r\n\r\n"]))


def backwards(rng, rows):
    i = rng.randrange(1, len(rows) - 1)
    change = rng.choice(["swap", "repeat", "drop", "reverse", "jitter", "still"])
    if change == "swap":
        rows[i], rows[i + 1] = rows[i + 1], rows[i]
    elif change == "repeat":
        rows.insert(i, list(rows[i]))
    elif change == "drop":
        del rows[i]
    elif change == "reverse":
        rows[1:] = rows[:0:-1]
    elif change == "jitter":
        rows[i][0] = repr(float(rows[i][0]) + rng.choice([1e-4, 5e-3, -5e-3]))
    else:
        for row in rows[1:]:
            row[0] = "1.0"
    return join(rows)


def header(rng, rows):
    column = rng.randrange(len(rows[0]))
    name = rows[0][column]
    rows[0][column] = rng.choice(
        [
            rng.choice(rows[0]),
            name.upper(),
            name.replace("_", ""),
            name + "1",
            f" {name} ",
            "",
            "x",
            f'"{name}"',
            name + "_0",
        ]
    )
    return join(rows)


def numbers_written_otherwise(rng, rows):
    row, column = any_cell(rng, rows)
    x = float(row[column])
    row[column] = rng.choice(
        [
            f"{x:.17e}",
            f"+{abs(x)!r}",
            f" {x!r}",
            f"{x!r} ",
            f"\t{x!r}",
            f'"{x!r}"',
            f"{x:.40f}",
            f"00{abs(x)!r}",
            f"{x!r}e0",
            "5.",
            ".5",
            "1e-400",
        ]
    )
    return join(rows)


def extra_columns(rng, rows):
    at = rng.randrange(len(rows[0]) + 1)
    for i, row in enumerate(rows):
        row.insert(at, "note" if i == 0 else rng.choice(["", "a b", "7", '"x,y"', '"a\nb"', "é"]))
    if rng.random() < 0.3:
        del rows[rng.randrange(1, len(rows))][rng.randrange(len(rows[0]))]
    return join(rows)


def raw_bytes(rng, rows):
    raw = bytearray(join(rows))
    for _ in range(rng.randrange(1, 4)):
        raw[rng.randrange(len(raw))] = rng.choice([rng.randrange(256), *b'",\n0-.e'])
    return bytes(raw)


def cut(rng, rows):
    raw = join(rows)
    return raw[: rng.randrange(len(raw))]


MUTATIONS = [
    text_in_number, not_a_number, infinite, huge, missing_columns, empty, one_row, ragged, wrong_order,
    bom_and_line_ends, backwards, header, numbers_written_otherwise, extra_columns, raw_bytes, cut,
]  # fmt: skip


def independent_reading(raw):
    """`{column: numbers}` as Python's csv and float have it, or None if a person would refuse the file."""
    try:
        records = [record for record in csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")) if record]
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(records) < 3 or any(len(record) != len(records[0]) for record in records):
        return None
    names = [name.strip() for name in records[0]]
    wanted = [name for name in names if re.fullmatch(r"timestamp|(qpos|qvel|ctrl)_\d+", name)]
    if len(set(wanted)) != len(wanted) or any(
        name.startswith(("qpos", "qvel", "ctrl")) for name in set(names) - set(wanted)
    ):
        return None
    columns = {}
    for name in wanted:
        try:
            columns[name] = np.array([float(record[names.index(name)]) for record in records[1:]])
        except ValueError:
            return None
        if any("_" in record[names.index(name)] for record in records[1:]):
            return None
        limit = math.inf if name == "timestamp" else 1e6
        if not np.isfinite(columns[name]).all() or np.abs(columns[name]).max() > limit:
            return None
    for kind in ("qpos", "qvel", "ctrl"):
        count = sum(name.startswith(kind) for name in columns)
        if count == 0 or any(f"{kind}_{i}" not in columns for i in range(count)):
            return None
    if "timestamp" not in columns:
        return None
    periods = np.diff(columns["timestamp"])
    return columns if (periods > 0).all() and (abs(periods / np.median(periods) - 1) <= 0.1).all() else None


@pytest.mark.behaviour("reports 11")
def test_a_thousand_damaged_files(tmp_path):
    """Each is refused with the file's name (and the line, if one is to blame), or read as another reader reads it."""
    counts = {mutation.__name__: [0, 0] for mutation in MUTATIONS}
    placeless = 0
    for number in range(1000):
        rng = random.Random(number)
        mutation = MUTATIONS[number % len(MUTATIONS)]
        nq, nu = rng.choice([(1, 1), (2, 1), (3, 2), (11, 4)])
        values = values_of(rng.randrange(4, 30), 1 + 2 * nq + nu, number)
        rows = [names_of(nq, nq, nu), *([repr(float(x)) for x in row] for row in values)]
        path = write(tmp_path / f"log{number}.csv", mutation(rng, rows))
        expected = independent_reading(path.read_bytes())
        if expected is None:
            with pytest.raises(DataError) as caught:
                read_trajectory(path)
            message = str(caught.value)
            placed = re.search(r", line \d+", message) is not None
            assert path.name in message
            assert placed or re.search(r"is empty|rows of numbers", message), message
            placeless += not placed
            counts[mutation.__name__][0] += 1
            continue
        found = read_trajectory(path)
        order = [f"{kind}_{i}" for kind in ("qpos", "qvel") for i in range(sum(n.startswith(kind) for n in expected))]
        np.testing.assert_array_equal(found.timestamp, expected["timestamp"])
        np.testing.assert_array_equal(found.states, np.stack([expected[n] for n in order], 1).astype(np.float32))
        controls = [f"ctrl_{i}" for i in range(len(expected) - 1 - len(order))]
        np.testing.assert_array_equal(found.actions, np.stack([expected[n] for n in controls], 1).astype(np.float32))
        counts[mutation.__name__][1] += 1
    refused, read = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    print(f"{refused} refused ({placeless} of them whole, without a line), {read} read rightly: {counts}")
    assert refused + read == 1000
    assert all(
        counts[name][0]
        for name in counts
        if name not in ("wrong_order", "bom_and_line_ends", "numbers_written_otherwise")
    )
    assert all(
        counts[name][1] for name in ("wrong_order", "bom_and_line_ends", "numbers_written_otherwise", "extra_columns")
    )
