"""Every strategy trains the same numbers, whatever the number of devices; and what a step says to other devices.

The devices are CPU threads (`--xla_force_host_platform_device_count`) of one process, which this file starts.
"""

import json
import math
import sys
import types
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "trainer")]  # for the child

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from device_cases import cases  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402
from support import NetTask, net_data, run_on_devices  # noqa: E402

import galvanax as gx  # noqa: E402
from galvanax.trainer.compiled_text import Collective, collectives  # noqa: E402
from galvanax.trainer.data_axis import in_mesh, over_data_axis  # noqa: E402
from galvanax.trainer.strategy import Strategy  # noqa: E402

STEPS = 12
# Sums over a batch in another order, carried on by 12 steps of Adam; measured: 9e-7.
TOLERANCE = 5e-6
EXACT = ("noise_max", "noise_min", "noise_first")
FSDP = gx.FSDP(min_size=64)
TWO_BY_FOUR = {
    "deep": gx.Partitioned(
        {"data": 2, "model": 4}, [("second/kernel", (None, "model")), ("odd/kernel", ("model", None))]
    ),
    "gru": gx.Partitioned({"data": 2, "model": 4}, [("*/head/layers/0/kernel", (None, None, "model"))]),
}
BETWEEN = ("2 devices", "4 devices")  # compiled in the slow run alone, as are these
DEAR = (("dynaflow", "8 devices"), ("dynaflow", "fsdp"), ("gru", "fsdp"))
CASES = ("acceleration", "noisy", "deep", "gru", "dynaflow", "dynaflow_loop")


def setups(case: str) -> dict[str, tuple[int, Strategy]]:
    """`{name: (devices, strategy)}` of a case."""
    plain = {f"{count} devices": (count, gx.DataParallel()) for count in (1, 2, 4, 8)}
    if case == "dynaflow_loop":  # for its collectives alone
        return {name: plain[name] for name in ("1 devices", "8 devices")}
    split = {"fsdp": (8, FSDP)} if case != "noisy" else {}  # too small to be split
    return plain | split | ({"partitioned": (8, TWO_BY_FOUR[case])} if case in TWO_BY_FOUR else {})


def is_slow(case: str, setup: str) -> bool:
    """Whether the slow run alone compiles it."""
    return setup in BETWEEN or (case, setup) in DEAR


class Watch(gx.Callback):
    """Keeps each step's metrics; looks at the state and the program at the start, and at what became of them."""

    def __init__(self, look: bool):
        self.look, self.metrics, self.seen = look, {}, {}

    def on_fit_start(self, run):
        self.first = [leaf for leaf in jax.tree.leaves((run.state.params, run.state.opt_state)) if leaf.ndim]
        if not self.look:
            return
        text = run.lower().compile().as_text()
        self.seen["collectives"] = [[one.kind, one.nbytes, one.loops] for one in collectives(text)]
        trees = {"state": (run.state.params, run.state.opt_state), "ema": run.state.slots.get("EMA", ())}
        self.seen["bytes"] = {name: bytes_per_device(tree) for name, tree in trees.items()}
        self.seen["total"] = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()}
        arrays, _ = run.snapshot()
        copies = {name: (arrays[f"params/{name}"].sharding, leaf) for name, leaf in run.state.params.items()}
        same = {name: copy.is_equivalent_to(leaf.sharding, leaf.ndim) for name, (copy, leaf) in copies.items()}
        self.seen["copies that lie elsewhere"] = [name for name, good in same.items() if not good]

    def on_train_metrics(self, run, steps, metrics):
        for index, step in enumerate(steps):
            self.metrics[step] = {name.removeprefix("train/"): float(rows[index]) for name, rows in metrics.items()}

    def on_fit_end(self, run, result):
        self.seen["donated"] = all(leaf.is_deleted() for leaf in self.first)
        self.seen["specs"] = {name: str(leaf.sharding.spec) for name, leaf in run.state.params.items()}


def bytes_per_device(tree) -> list[int]:
    """What each device holds of the arrays."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return list(held.values())


def train(task, data, devices, strategy, look=False, **settings) -> dict:
    """What a run measured."""
    watch = Watch(look)
    callbacks = [gx.GradientClipping(1.0), gx.EMA(0.9), *settings.pop("callbacks", ()), watch]
    settings = {"max_steps": STEPS} | settings
    resume = settings.pop("resume", None)
    trainer = gx.Trainer(devices=devices, strategy=strategy, callbacks=callbacks, **settings)
    result = trainer.fit(task, data, resume=resume)
    return {"steps": watch.metrics, "seen": watch.seen, "end": result.metrics}


def travel(folder: Path, task, data) -> dict:
    """A run that moves from device to device, and from strategy to strategy."""
    steps = {}
    places = [(8, FSDP, 3), (1, gx.DataParallel(), 6), (4, FSDP, 9), (8, TWO_BY_FOUR["deep"], STEPS)]
    for devices, strategy, until in places:
        saving = {"callbacks": [gx.Checkpoint(every=gx.Steps(100))], "run_dir": folder, "resume": "auto"}
        steps |= train(task, data, devices, strategy, max_steps=until, **saving)["steps"]
    return {"steps": steps}


def halve(rows):
    """Halves each row until it is below 1: a loop that runs as long as the data say."""
    return jax.lax.while_loop(lambda rows: (rows >= 1).any(), lambda rows: jnp.where(rows >= 1, rows / 2, rows), rows)


def local_loops() -> dict:
    """A loop that depends on its rows, plainly and on each device's rows alone."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    rows = jax.device_put(np.arange(1.0, 33.0, dtype=np.float32).reshape(16, 2), split)
    found = {}
    for name, function in {"plain": halve, "local": over_data_axis(halve)}.items():

        def traced(rows, function=function):
            with in_mesh(mesh):
                return function(rows)

        compiled = jax.jit(traced).lower(rows).compile()
        found[name] = {
            "values": np.asarray(compiled(rows)).tolist(),
            "in loops": sum(bool(one.loops) for one in collectives(compiled.as_text())),
        }
    weight = jax.device_put(jnp.float32(0.3), whole)

    def loss(weight, rows, function):
        return jnp.mean(jax.vmap(function, 1, 1)(rows * weight) ** 2)  # inside vmap and grad

    def wave(rows):
        return jax.lax.scan(lambda rows, _: (jnp.sin(rows), None), rows, length=3)[0]

    for name, function in {"plain": wave, "local": over_data_axis(wave)}.items():

        def gradient(weight, rows, function=function):
            with in_mesh(mesh):
                return jax.grad(loss)(weight, rows, function)

        found[name]["gradient"] = float(jax.jit(gradient)(weight, rows))
    return found


def refusals() -> dict[str, str]:
    """What is said of settings that cannot be met."""
    two_by_four = {"data": 2, "model": 4}
    wrong = {
        "batch": ({"devices": 8}, net_data(batch_size=30)),
        "many": ({"devices": 16}, net_data()),
        "twice": ({"devices": (1, 1)}, net_data()),
        "unknown id": ({"devices": (0, 9)}, net_data()),
        "no rule": ({"strategy": gx.Partitioned({"data": 8}, [("frist/*", ("data",))])}, net_data()),
        "indivisible": ({"strategy": gx.Partitioned(two_by_four, [("second/kernel", (None, "model"))])}, net_data()),
        "too long": ({"strategy": gx.Partitioned({"data": 8}, [("first/bias", (None, "data"))])}, net_data()),
        "product": ({"devices": 4, "strategy": gx.Partitioned({"data": 8})}, net_data()),
        "needs": ({"strategy": gx.Partitioned({"data": 16})}, net_data()),
    }
    said = {}
    for name, (settings, data) in wrong.items():
        try:
            gx.Trainer(max_steps=1, **settings).fit(NetTask(), data)
        except gx.ConfigError as error:
            said[name] = str(error)
    chosen = gx.Trainer(max_steps=2, devices=(5, 2)).fit(NetTask(), net_data())
    said["chosen"] = sorted(device.id for device in chosen.state.step.devices())
    return said


def main(folder: Path, slow: bool) -> None:
    """The child: runs everything that is of this run, writes what it saw."""
    assert jax.device_count() == 8
    found: dict = {}
    known = cases(folder)
    for case in CASES:
        task, data = known[case]
        mine = [name for name in setups(case) if slow is is_slow(case, name) and name != "1 devices"]
        found[case] = {
            name: train(task, data, *setups(case)[name], look=name in ("8 devices", "fsdp", "partitioned"))
            for name in (["1 devices", *mine] if mine else [])
        }
    if not slow:
        found["deep"]["moved"] = travel(folder / "run", *known["deep"])
        found["loops"], found["said"] = local_loops(), refusals()
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the child saw."""
    return run_on_devices(__file__, tmp_path_factory.mktemp("strategies"))


@pytest.fixture(scope="module")
def found_slow(tmp_path_factory):
    """What the slow run's child saw."""
    return run_on_devices(__file__, tmp_path_factory.mktemp("strategies_slow"), "slow")


def said_in(run) -> list[Collective]:
    return [Collective(kind, nbytes, tuple(loops), "") for kind, nbytes, loops in run["seen"]["collectives"]]


PAIRS = [(case, name) for case in CASES for name in setups(case) if name != "1 devices"] + [("deep", "moved")]
MARKED = [pytest.param(*pair, marks=pytest.mark.slow) if is_slow(*pair) else pair for pair in PAIRS]


@pytest.mark.parametrize(("case", "setup"), MARKED)
def test_the_losses_are_those_of_one_device(request, case, setup):
    found = request.getfixturevalue("found_slow" if is_slow(case, setup) else "found")
    one, other = found[case]["1 devices"]["steps"], found[case][setup]["steps"]
    assert len(other) == STEPS
    worst = 0.0
    for step, metrics in one.items():
        for name, value in metrics.items():
            if name in EXACT or value == 0.0:  # the rate of a warm-up's first step is 0
                assert other[step][name] == value, (step, name)
            else:
                worst = max(worst, abs(other[step][name] / value - 1))
    print(f"\n{case}, {setup}: largest relative difference {worst:.1e}")
    assert worst < TOLERANCE


@pytest.mark.behaviour("peers 148")
@pytest.mark.parametrize("setup", ["8 devices", "fsdp", "partitioned"])
def test_so_are_the_evaluations(found, setup):
    one, other = found["deep"]["1 devices"]["end"], found["deep"][setup]["end"]
    for name in ("val/loss", "val/mae"):
        assert other[name] == pytest.approx(one[name], rel=TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("noisy", "dynaflow")])
def test_a_step_has_one_all_reduce(found, case):
    """In the body of the loop over steps, in no loop inside it; with FSDP one all-gather too.

    And behind that loop, once a dispatch, what all devices say of their parts of the weights: whether they are finite.
    """
    everything = {name: said_in(run) for name, run in found[case].items() if name in ("8 devices", "fsdp")}
    for name, said in everything.items():
        kinds = [(one.kind, len(one.loops), one.times) for one in said]
        assert kinds.count(("all-reduce", 1, 1)) == 1
        split = [("all-gather", 1, 1), ("all-reduce", 0, 1)] if name == "fsdp" else []
        assert sorted(kinds) == [*split, ("all-reduce", 1, 1)]


def test_batch_statistics_cost_two_more(found):
    """The mean over the whole batch forward, and its gradient backward: as the task asks for."""
    assert [(one.kind, one.loops) for one in said_in(found["noisy"]["8 devices"])] == [("all-reduce", (None,))] * 3


@pytest.mark.behaviour("peers 146")
def test_fsdp_keeps_an_eighth(found):
    """Of parameters, their optimizer state and their averages, but for what cannot be split."""
    whole, split = found["deep"]["8 devices"]["seen"], found["deep"]["fsdp"]["seen"]
    small = 4 * (7 * 7 + 7 * 2 + 2)  # odder/kernel, last/kernel and last/bias: bytes
    for name, copies in {"state": 3, "ema": 1}.items():  # the parameters and Adam's two moments
        total, unsplit = whole["total"][name], copies * small + (4 if name == "state" else 0)  # Adam's count
        assert whole["bytes"][name] == [total] * 8
        assert split["bytes"][name] == [(total - unsplit) // 8 + unsplit] * 8
    print(f"\nbytes a device: {whole['bytes']['state'][0]} whole, {split['bytes']['state'][0]} split")
    specs = found["deep"]["fsdp"]["seen"]["specs"]
    assert specs["first/kernel"] == str(PartitionSpec(None, "data"))
    assert specs["odd/kernel"] == str(PartitionSpec("data"))
    assert specs["last/kernel"] == specs["odder/kernel"] == str(PartitionSpec())


def test_a_partitioned_kernel_is_cut(found):
    seen = found["deep"]["partitioned"]["seen"]
    assert seen["specs"]["second/kernel"] == str(PartitionSpec(None, "model"))
    assert seen["specs"]["first/kernel"] == str(PartitionSpec())
    # A quarter of two kernels and of their moments.
    assert seen["bytes"]["state"] == [seen["total"]["state"] - 3 * 4 * (64 * 64 + 64 * 7) * 3 // 4] * 8


@pytest.mark.parametrize("setup", ["8 devices", "fsdp", "partitioned"])
def test_the_state_is_donated_and_copied_as_it_lies(found, setup):
    assert found["deep"][setup]["seen"]["donated"]
    assert found["deep"][setup]["seen"]["copies that lie elsewhere"] == []


def test_a_loop_that_depends_on_its_rows_is_local(found):
    """XLA's own cut asks all devices in each turn; ours asks none. The numbers are the same."""
    plain, local = found["loops"]["plain"], found["loops"]["local"]
    assert plain["in loops"] > 0
    assert local["in loops"] == 0
    assert local["values"] == plain["values"]
    assert local["gradient"] == pytest.approx(plain["gradient"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch", ("30 rows cannot be split over 8 devices", "24, 32")),
        ("many", ("Trainer.devices=16: there are 8 (cpu)", "--xla_force_host_platform_device_count=16")),
        ("twice", ("devices=(1, 1) names a device twice",)),
        ("unknown id", ("there is no device 9", "0, 1, 2, 3, 4, 5, 6, 7")),
        ("no rule", ("Partitioned.rules", "'frist/*'", "matches none", "first/")),
        (
            "indivisible",
            ("'second/kernel' splits dimension 1 of second/kernel (16, 2) into 4 parts", "no multiple of 4"),
        ),
        ("too long", ("says 2 dimensions; first/bias has 1",)),
        ("product", ("Partitioned.axes={'data': 8} are for 8 devices, not 4",)),
        ("needs", ("Partitioned needs 16 devices: there are 8 (cpu)",)),
    ],
)
def test_what_cannot_be_met_is_said(found, name, words):
    for word in words:
        assert word in found["said"][name]


def test_devices_can_be_named(found):
    assert found["said"]["chosen"] == [2, 5]


def test_what_fsdp_cannot_split_is_said():
    shapes = {"a/kernel": np.zeros((64, 7)), "b/kernel": np.zeros((7, 9)), "b/bias": np.zeros(9)}
    strategy = gx.FSDP(min_size=10)
    assert strategy.warning(shapes, {"data": 8}) == (
        "FSDP: whole on each of 8 devices, which divide no dimension: b/kernel (7, 9)."
    )
    assert strategy.warning(shapes, {"data": 1}) is None
    assert gx.FSDP(min_size=1000).warning(shapes, {"data": 8}) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gx.FSDP(0), "FSDP.min_size=0: expected a whole number of at least 1"),
        (lambda: gx.FSDP(True), "FSDP.min_size=True"),
        (lambda: gx.FSDP(1.5), "FSDP.min_size=1.5"),
        (lambda: gx.Partitioned({}), '"data" among them'),
        (lambda: gx.Partitioned({"model": 2}), '"data" among them'),
        (lambda: gx.Partitioned({"data": 0}), "names and sizes"),
        (lambda: gx.Partitioned({"data": 2}, ["kernel"]), "expected pairs such as"),
        (lambda: gx.Partitioned({"data": 2}, [("kernel", "data")]), "expected pairs such as"),
        (lambda: gx.Partitioned({"data": 2, "model": 2}, [("*", ("modle",))]), "the axis 'modle'. Nearest: model"),
        (lambda: gx.Partitioned({"data": 2}, [("*", ("data", "data"))]), "two dimensions over one axis"),
        (lambda: gx.Trainer(max_steps=1, strategy="fsdp").fit(NetTask(), net_data()), "expected gx.DataParallel()"),
        (lambda: gx.Trainer(max_steps=1, devices=0).fit(NetTask(), net_data()), "devices=0: expected"),
        (lambda: gx.Trainer(max_steps=1, devices="all").fit(NetTask(), net_data()), "devices='all': expected"),
        (lambda: gx.Trainer(max_steps=1, devices=()).fit(NetTask(), net_data()), r"devices=\(\): expected"),
    ],
)
def test_settings_that_make_no_sense(make, words):
    with pytest.raises(gx.ConfigError, match=words):
        make()


def test_rules_and_sizes_on_paper():
    shapes = {name: types.SimpleNamespace(shape=shape) for name, shape in {"a": (6, 8), "b": (8, 8), "c": (3,)}.items()}
    rules = [("a", (None, ("data", "model"))), ("*", ())]
    specs = gx.Partitioned({"data": 2, "model": 4}, rules).param_specs(shapes, {"data": 2, "model": 4})
    assert specs == {"a": PartitionSpec(None, ("data", "model")), "b": PartitionSpec(), "c": PartitionSpec()}
    fsdp = gx.FSDP(min_size=4).param_specs(shapes, {"data": 2})
    assert fsdp == {"a": PartitionSpec(None, "data"), "b": PartitionSpec("data"), "c": PartitionSpec()}
    assert math.prod(gx.Partitioned({"data": 2, "model": 4}).axes.values()) == 8


if __name__ == "__main__":
    main(Path(sys.argv[1]), "slow" in sys.argv)
