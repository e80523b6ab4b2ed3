"""`galvanax fit EXPERIMENT --dry-run`: compiles the step for devices that need not be here, and says what it costs."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from rich.console import Console
from rich.table import Table
from rich.text import Text

from galvanax.cli.hardware import HARDWARE, estimate
from galvanax.errors import ConfigError
from galvanax.experiments.experiment import Experiment
from galvanax.runs import config
from galvanax.runs.arrays import name_leaves
from galvanax.trainer.compiled_text import collectives, work
from galvanax.trainer.devices import Devices
from galvanax.trainer.start import Plan, check_settings, plan_run
from galvanax.trainer.state import STATE_FIELDS
from galvanax.trainer.trainer import Trainer

LARGEST = 10  # arrays of the state in the table
FAR = (8, 512)  # numbers of GPUs to look at, whatever was asked for


def dry_run(experiment: Experiment, arguments: Sequence[str], as_json: bool) -> None:
    """Compiles the training program of an experiment for simulated CPU devices and prints what it would cost.

    Where JAX is up already with other devices, a process of its own does it: their number is fixed at the start.

    Args:
      experiment: what would be trained.
      arguments: of `galvanax fit`, for that process.
      as_json: print one JSON object and nothing else.
    """
    trainer = dataclasses.replace(experiment.trainer, callbacks=list(experiment.callbacks.values()))
    count = _count_devices(trainer)
    if not _simulate(count):
        raise SystemExit(_elsewhere(count, arguments))
    report = measure(trainer, experiment)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report, Console())


def measure(trainer: Trainer, experiment: Experiment) -> dict[str, Any]:
    """Sets the data up, traces and compiles; everything that is printed, as JSON data."""
    check_settings(trainer)
    config.check_dataclass(experiment.task)
    start = time.perf_counter()
    devices = Devices.choose(trainer.devices, trainer.strategy)
    plan = plan_run(trainer, experiment.task, experiment.data, devices)
    traced = time.perf_counter()
    lowered = plan.lower()
    began = time.perf_counter()
    # From scratch: a time from the cache would say nothing.
    with _no_compile_cache():
        compiled = lowered.compile()
    compile_s = time.perf_counter() - began
    text = compiled.as_text() or ""
    messages, effort = collectives(text), work(text)
    memory: Any = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "outputs_in_place": memory.alias_size_in_bytes,
    }
    counts = sorted({2**power for power in range(devices.count.bit_length())} | {devices.count, *FAR})
    return {
        "experiment": trainer.name,
        "devices": devices.count,
        "mesh": dict(devices.mesh.shape),
        "strategy": config.to_json(trainer.strategy),
        "batch_rows": plan.feed.batch_size,
        "batch_rows_per_device": plan.feed.batch_size // devices.shards,
        "steps": plan.num_steps,
        "steps_per_dispatch": plan.capacity,
        "seconds": {"data_and_tracing": traced - start, "lowering": began - traced, "compiling": compile_s},
        "memory_per_device": {
            **sizes,
            "all": sizes["arguments"] + sizes["temporaries"] + sizes["outputs"] - sizes["outputs_in_place"],
        },
        "state": _describe_state(plan),
        "step_per_device": {
            "flops": effort.flops,
            "bytes": effort.nbytes,
            "kernels": effort.kernels,
            "loops_of_unknown_length": effort.open_loops,
            "xla_flops_with_loops_counted_once": _cost(compiled, "flops"),
        },
        "collectives": _summarise(messages),
        "scaling": [
            dataclasses.asdict(estimate(hardware, number, effort, messages, trainer.precision))
            for hardware in HARDWARE
            for number in counts
        ],
        "hardware": [dataclasses.asdict(hardware) for hardware in HARDWARE],
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """Prints tables."""
    table = Table("one step", "value", title=f"{report['experiment']} on {report['devices']} simulated CPU devices")
    memory, step = report["memory_per_device"], report["step_per_device"]
    axes = ", ".join(f"{name}={size}" for name, size in report["mesh"].items())
    rows = {
        "strategy, mesh": f"{report['strategy']['type']}, {axes}",
        "batch": f"{report['batch_rows']} rows, {report['batch_rows_per_device']} on a device",
        "compile time": f"{report['seconds']['compiling']:.1f} s",
        "memory on a device": _bytes(memory["all"]),
        f"  arguments (state, {report['steps_per_dispatch']} batches)": _bytes(memory["arguments"]),
        "  temporaries": _bytes(memory["temporaries"]),
        "  outputs": f"{_bytes(memory['outputs'])}, {_bytes(memory['outputs_in_place'])} of it in place",
        "state": f"{_bytes(report['state']['bytes'])}, on a device {_bytes(report['state']['bytes_per_device'])}",
        "arithmetic on a device": f"{step['flops']:.3g} FLOP",
        "memory traffic on a device": f"at most {_bytes(step['bytes'])}",
        "operations on a device": str(step["kernels"]),
    }
    if step["loops_of_unknown_length"]:
        rows["loops of unknown length"] = f"{step['loops_of_unknown_length']}, their bodies counted once"
    for label, value in rows.items():
        table.add_row(label, value)
    console.print(table)

    table = Table("array of the state", "shape", "split over", "bytes", "on a device", title="the largest arrays")
    table.columns[0].overflow = "fold"  # a path must be whole
    for leaf in report["state"]["largest"]:
        shape = f"{leaf['dtype']}{leaf['shape']}"
        table.add_row(leaf["name"], Text(shape), leaf["spec"], _bytes(leaf["bytes"]), _bytes(leaf["bytes_per_device"]))
    console.print(table)

    table = Table("collective", "times a step", "bytes each", "in a loop inside the step", title="messages of one step")
    for one in report["collectives"]:
        table.add_row(one["kind"], str(one["times"]), _bytes(one["bytes"]), "yes" if one["in_loop"] else "no")
    if not report["collectives"]:
        table.add_row("none", "0", "", "")
    console.print(table)

    table = Table("GPUs", "compute", "limited by", "communication", "efficiency")
    table.title = "estimate: as many rows on each GPU, nothing overlapped"
    links = {hardware["name"]: hardware["links"] for hardware in report["hardware"]}
    for name, estimates in itertools.groupby(report["scaling"], key=lambda row: row["hardware"]):
        for row in estimates:
            seconds = _seconds(row["compute_s"]), row["limit"], _seconds(row["communication_s"])
            table.add_row(f"{row['devices']} x {name}", *seconds, f"{row['efficiency']:.1%}")
        table.add_section()
    console.print(table)
    console.print("; ".join(f"{name}: {how}" for name, how in links.items()) + ". The formula: docs/devices.md.")


def _count_devices(trainer: Trainer) -> int:
    devices = trainer.devices
    if devices == "auto":
        return getattr(trainer.strategy, "needs", None) or 1
    if isinstance(devices, int):
        return max(1, devices)
    return max((int(one) for one in devices), default=0) + 1


def _simulate(count: int) -> bool:
    """Makes JAX start with so many CPU devices; False where it has started with others."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # it has started
        return jax.default_backend() == "cpu" and jax.device_count() == count
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = _without_count(os.environ.get("XLA_FLAGS", ""))
    return True


def _elsewhere(count: int, arguments: Sequence[str]) -> int:
    if os.environ.get("JAX_NUM_CPU_DEVICES") == str(count):
        raise ConfigError(f"JAX would not start with {count} CPU devices: it has {jax.devices()}.")
    settings = {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    flags = _without_count(os.environ.get("XLA_FLAGS", ""))
    command = [sys.executable, "-m", "galvanax.cli.main", "fit", *arguments]
    return subprocess.run(command, env={**os.environ, **settings, "XLA_FLAGS": flags}, check=False).returncode


def _without_count(flags: str) -> str:
    return re.sub(r"--xla_force_host_platform_device_count=\S+", "", flags).strip()


@contextlib.contextmanager
def _no_compile_cache() -> Iterator[None]:
    """Compiles afresh inside, as a run on other hardware would."""
    settings: Any = jax.config
    before = settings.jax_enable_compilation_cache
    settings.update("jax_enable_compilation_cache", False)
    reset_cache()  # it remembers whether it was enabled
    try:
        yield
    finally:
        settings.update("jax_enable_compilation_cache", before)
        reset_cache()


def _describe_state(plan: Plan) -> dict[str, Any]:
    leaves = []
    for name, leaf in name_leaves({field: getattr(plan.state, field) for field in STATE_FIELDS}).items():
        size = leaf.dtype.itemsize
        leaves.append(
            {
                "name": name,
                "dtype": str(leaf.dtype),
                "shape": list(leaf.shape),
                "spec": _describe_spec(leaf.sharding.spec),
                "bytes": math.prod(leaf.shape) * size,
                "bytes_per_device": math.prod(leaf.sharding.shard_shape(leaf.shape)) * size,
            }
        )
    return {
        "arrays": len(leaves),
        "bytes": sum(leaf["bytes"] for leaf in leaves),
        "bytes_per_device": sum(leaf["bytes_per_device"] for leaf in leaves),
        "largest": sorted(leaves, key=lambda leaf: -leaf["bytes"])[:LARGEST],
    }


def _describe_spec(spec: Any) -> str:
    names = ["-" if split is None else split if isinstance(split, str) else "+".join(split) for split in spec]
    return ", ".join(names) if any(name != "-" for name in names) else "nothing"


def _summarise(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Equal messages as one row; those before and after the loop over steps are left out."""
    rows = collections.Counter(
        (one.kind, int(one.nbytes), len(one.loops) > 1, one.times) for one in messages if one.loops
    )
    return [
        {"kind": kind, "times": number * times, "bytes": nbytes, "in_loop": in_loop}
        for (kind, nbytes, in_loop, times), number in sorted(rows.items(), key=lambda row: -row[0][1])
    ]


def _cost(compiled: Any, name: str) -> float | None:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return None if analysis is None else analysis.get(name)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _seconds(value: float) -> str:
    return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms"
