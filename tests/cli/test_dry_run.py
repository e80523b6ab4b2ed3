"""`galvanax fit --dry-run`: what a step would cost, without training one."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import pytest

import galvanax as gx
from galvanax.cli.hardware import HARDWARE, LATENCY, LAUNCH, estimate
from galvanax.cli.main import main
from galvanax.cli.strategy_flag import parse_strategy, write_strategy
from galvanax.trainer.compiled_text import Collective, Work

LITTLE = ["--data.num-rollouts", "10", "--data.rollout-length", "40"]


def galvanax(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "galvanax.cli.main", "fit", "pendulum", *LITTLE, *arguments],
        cwd=folder, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of the pendulum on 8 devices, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("dry")
    done = galvanax(folder, "--dry-run", "--devices", "8", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), folder


def test_it_leaves_nothing_behind(report):
    assert list(report[1].iterdir()) == []


def test_what_it_says_of_the_run(report):
    found, _ = report
    assert (found["experiment"], found["devices"], found["mesh"]) == ("pendulum", 8, {"data": 8})
    assert found["strategy"] == {"type": "DataParallel"}
    assert (found["batch_rows"], found["batch_rows_per_device"]) == (128, 16)
    assert found["seconds"]["compiling"] > 0.1


def test_the_memory_is_the_states_and_the_batches(report):
    """State: three times the parameters (Adam), and the EMA. A row: state, action, next state and acceleration."""
    found, _ = report
    params = 4 * (4 * 128 + 128 + 128 * 128 + 128 + 128 + 1)
    assert 4 * params < found["state"]["bytes_per_device"] < 4 * params + 500
    stack = found["steps_per_dispatch"] * 16 * (2 + 1 + 2 + 1) * 4
    memory = found["memory_per_device"]
    # XLA drops the next states, which the loss doesn't look at, from what the program is given.
    assert memory["arguments"] <= found["state"]["bytes_per_device"] + stack + 100
    assert memory["arguments"] >= found["state"]["bytes_per_device"] + stack * 4 / 6
    assert memory["outputs_in_place"] >= 4 * params
    assert memory["all"] >= memory["arguments"]


def test_the_arithmetic_is_a_small_networks(report):
    """2 a weight and row forward, 4 backward, and 20 or so a weight for Adam, clipping and the EMA."""
    found, _ = report
    weights = 4 * 128 + 128 * 128 + 128
    flops = found["step_per_device"]["flops"]
    assert 6 * 16 * weights < flops < (6 * 16 + 40) * weights
    assert found["step_per_device"]["loops_of_unknown_length"] == 0


def test_one_all_reduce_of_the_gradients(report):
    found, _ = report
    [message] = found["collectives"]
    assert (message["kind"], message["times"], message["in_loop"]) == ("all-reduce", 1, False)
    params = 4 * (4 * 128 + 128 + 128 * 128 + 128 + 128 + 1)
    assert params <= message["bytes"] <= params + 16  # the loss and a metric


def test_the_largest_arrays_come_first(report):
    largest = report[0]["state"]["largest"]
    assert {leaf["name"].split("/")[0] for leaf in largest[:4]} == {"params", "opt_state", "slots"}
    assert largest[0]["shape"] == [128, 128]
    assert all(leaf["spec"] == "nothing" and leaf["bytes"] == leaf["bytes_per_device"] for leaf in largest)


def test_scaling_is_told_for_each_hardware(report):
    rows = report[0]["scaling"]
    for hardware in HARDWARE:
        efficiencies = {row["devices"]: row["efficiency"] for row in rows if row["hardware"] == hardware.name}
        assert list(efficiencies) == [1, 2, 4, 8, 512]
        assert efficiencies[1] == 1
        assert sorted(efficiencies.values(), reverse=True) == list(efficiencies.values())


def test_tables_where_jax_has_started_already(capfd, monkeypatch, tmp_path):
    """Then a process of its own compiles, with the devices that were asked for."""
    monkeypatch.chdir(tmp_path)
    assert jax.device_count() == 1
    with pytest.raises(SystemExit) as ended:
        main(["fit", "pendulum", *LITTLE, "--dry-run", "--devices", "2", "--trainer.strategy", "fsdp:1000"])
    said = capfd.readouterr().out
    assert ended.value.code == 0, said
    for words in ("pendulum on 2 simulated CPU devices", "FSDP, data=2", "all-gather", "64 on a device", "H100 SXM"):
        assert words in said
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_split(tmp_path):
    done = galvanax(tmp_path, "--dry-run", "--devices", "7")
    assert done.returncode == 2
    assert "128 rows cannot be split over 7 devices" in done.stderr
    assert done.stdout == ""


def test_json_is_of_a_dry_run(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "pendulum", "--json"])
    assert ended.value.code == 2
    assert "--json is of a --dry-run" in capsys.readouterr().err


def test_the_estimate_by_hand():
    h100 = next(hardware for hardware in HARDWARE if hardware.name == "H100 SXM")
    messages = [Collective("all-reduce", 1e9, (None,), ""), Collective("all-gather", 4e6, (None, 3), "")]
    busy = Work(flops=66.9e12, nbytes=1e9, kernels=100, open_loops=0)
    eight = estimate(h100, 8, busy, messages, "float32")
    ring = 2 * 7 / 8 * 1e9 / 450e9 + 2 * 3 * LATENCY["link"] + 3 * (7 / 8 * 4e6 / 450e9 + 3 * LATENCY["link"])
    assert (eight.compute_s, eight.limit) == (pytest.approx(1.0), "arithmetic")
    assert eight.communication_s == pytest.approx(ring)
    assert eight.efficiency == pytest.approx(1 / (1 + ring))
    many = estimate(h100, 512, busy, messages[:1], "float32")
    assert many.communication_s == pytest.approx(2 * 511 / 512 * 1e9 / 50e9 + 2 * 9 * LATENCY["network"])
    half = estimate(h100, 1, busy, messages, "bfloat16")
    assert (half.communication_s, half.efficiency) == (0, 1)
    assert half.compute_s == pytest.approx(66.9 / 989)
    streaming = dataclasses.replace(busy, flops=1.0, nbytes=3.35e12)
    assert (estimate(h100, 1, streaming, [], "float32").limit, 1) == ("memory", 1)
    tiny = dataclasses.replace(busy, flops=1.0, nbytes=1.0)
    assert estimate(h100, 1, tiny, [], "float32").compute_s == pytest.approx(100 * LAUNCH)


@pytest.mark.parametrize(
    ("words", "strategy"),
    [
        (["data"], gx.DataParallel()),
        (["fsdp:65536"], gx.FSDP(65536)),
        (["partitioned:data=8"], gx.Partitioned({"data": 8})),
        (
            ["partitioned:data=2,model=4", "*/kernel=-,model", "a=b/bias=model+data"],
            gx.Partitioned(
                {"data": 2, "model": 4}, (("*/kernel", (None, "model")), ("a=b/bias", (("model", "data"),)))
            ),
        ),
    ],
)
def test_strategies_in_words(words, strategy):
    assert parse_strategy(words) == strategy
    assert write_strategy(strategy) == words


def test_fsdp_without_a_number():
    assert parse_strategy(["fsdp"]) == gx.FSDP()


@pytest.mark.parametrize(
    "words",
    [
        *([], ["fsbp"], ["data:3"], ["fsdp:0"], ["fsdp:x"], ["fsdp", "*=data"], ["partitioned"], ["partitioned:data"]),
        *(["partitioned:model=2"], ["partitioned:data=2", "kernel"], ["partitioned:data=2", "*=modle"]),
    ],
)
def test_words_that_mean_nothing(words):
    with pytest.raises(ValueError, match=r"no strategy|expected data"):
        parse_strategy(words)
