"""PPO on 1, 2, 4 and 8 devices: the same environments, the same minibatches, the same numbers but for rounding.

The devices are CPU threads of one process, which this file starts.
"""

import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "tasks")]  # for the child

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from support import run_on_devices  # noqa: E402
from test_ppo import Point, Sides, data_of, small  # noqa: E402

import galvanax as gx  # noqa: E402
from galvanax.tasks.ppo import _shuffled_parts, adapt_rate  # noqa: E402
from galvanax.trainer.compiled_text import collectives  # noqa: E402

EPOCHS, MINIBATCHES = 3, 2
STEPS = {"memory": 6, "augment": 2}
# Sums in another order, carried on by Adam; measured: 1e-6, and 9e-5 in a KL divergence of 1e-5. Augmented minibatches
# magnify rounding tenfold in each iteration. Means near 0 are compared by size.
TOLERANCE = {"memory": 1e-5, "augment": 5e-4}
SMALL = {"policy_loss": 1e-5, "explained_variance": 1e-4}
TASKS = {
    "memory": (small(learning_rate_schedule="adaptive", memory_size=4), Point()),
    "augment": (small(symmetry="augment", learning_rate_schedule="linear"), Sides()),
}
PARTITIONED = gx.Partitioned({"data": 4, "model": 2}, [("policy/*/kernel", (None, "model"))])
SETUPS = {f"{count} devices": (count, gx.DataParallel()) for count in (1, 2, 4, 8)}
BETWEEN = ("2 devices", "4 devices")  # compiled in the slow run alone, as are FSDP and a mirrored robot
SPLIT = {"fsdp": (8, gx.FSDP(min_size=32)), "partitioned": (8, PARTITIONED)}


def is_slow(name: str, setup: str) -> bool:
    """Whether the slow run alone compiles it."""
    return name == "augment" or setup in (*BETWEEN, "fsdp")


class Watch(gx.Callback):
    """Keeps each step's metrics, and what the start looked like."""

    def __init__(self, look: bool):
        self.look, self.metrics, self.seen = look, {}, {}

    def on_fit_start(self, run):
        if not self.look:
            return
        self.seen["collectives"] = [[one.kind, one.loops] for one in collectives(run.lower().compile().as_text())]
        evaluation = collectives(run.evaluator.lower().compile().as_text())
        self.seen["evaluation in loops"] = [one.kind for one in evaluation if one.loops]
        leaves = jax.tree.leaves((run.state.carry.envs, run.state.carry.memory))
        self.seen["rows"] = sorted({shard.data.shape[0] for leaf in leaves for shard in leaf.addressable_shards})

    def on_train_metrics(self, run, steps, metrics):
        for index, step in enumerate(steps):
            self.metrics[step] = {name.removeprefix("train/"): float(rows[index]) for name, rows in metrics.items()}


def train(name, devices, strategy, look=False, steps=None, resume=None, **settings) -> dict:
    """What a run measured."""
    (task, env), watch = TASKS[name], Watch(look)
    callbacks = [gx.GradientClipping(1.0), gx.EMA(0.9), *settings.pop("callbacks", ()), watch]
    trainer = gx.Trainer(
        max_steps=steps or STEPS[name], devices=devices, strategy=strategy, callbacks=callbacks, **settings
    )
    result = trainer.fit(task, data_of(env), resume=resume)
    return {"steps": watch.metrics, "seen": watch.seen, "end": result.metrics}


def travel(folder: Path) -> dict:
    """A run that moves from device to device: its environments go with it."""
    steps = {}
    for devices, until in ((8, 2), (1, 4), (4, None)):
        saving = {"callbacks": [gx.Checkpoint(every=gx.Steps(100))], "run_dir": folder, "resume": "auto"}
        steps |= train("memory", devices, gx.DataParallel(), steps=until, **saving)["steps"]
    return {"steps": steps}


def said(task, data, **settings) -> str:
    """What a run that cannot be says."""
    with pytest.raises(gx.GalvanaxError) as caught:
        gx.Trainer(max_steps=1, **settings).fit(task, data)
    return str(caught.value)


def main(folder: Path, slow: bool) -> None:
    """The child: runs everything that is of this run, writes what it saw."""
    assert jax.device_count() == 8
    found: dict = {
        name: {
            setup: train(name, *where, look=setup == "8 devices")
            for setup, where in SETUPS.items()
            if slow is is_slow(name, setup) or setup == "1 devices"
        }
        for name in TASKS
        if slow or name == "memory"
    }
    split = {setup: where for setup, where in SPLIT.items() if slow is is_slow("memory", setup)}
    found["memory"] |= {setup: train("memory", *where) for setup, where in split.items()}
    if not slow:
        found["memory"]["moved"] = travel(folder / "run")
        broken = data_of(Point(nan_reward=0.8))
        found["broken"] = [said(small(), broken, devices=count) for count in (1, 8)]
        found["indivisible"] = said(small(), data_of(num_envs=100), devices=8)
        found["few"] = said(small(num_minibatches=4), data_of(num_envs=16), devices=8)
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the child saw."""
    return run_on_devices(__file__, tmp_path_factory.mktemp("ppo_devices"))


@pytest.fixture(scope="module")
def found_slow(tmp_path_factory):
    """What the slow run's child saw."""
    return run_on_devices(__file__, tmp_path_factory.mktemp("ppo_devices_slow"), "slow")


PAIRS = [(name, setup) for name in TASKS for setup in SETUPS if setup != "1 devices"]


PAIRS += [("memory", setup) for setup in (*SPLIT, "moved")]
MARKED = [pytest.param(*pair, marks=pytest.mark.slow) if is_slow(*pair) else pair for pair in PAIRS]
EITHER = [pytest.param(name, marks=pytest.mark.slow) if is_slow(name, "8 devices") else name for name in TASKS]


@pytest.fixture
def seen_by(request):
    """What the child saw that ran a task in a setup."""
    return lambda name, setup: request.getfixturevalue("found_slow" if is_slow(name, setup) else "found")[name]


@pytest.mark.parametrize(("name", "setup"), MARKED)
def test_the_numbers_are_those_of_one_device(seen_by, name, setup):
    found = seen_by(name, setup)
    one, other = found["1 devices"]["steps"], found[setup]["steps"]
    assert len(other) == STEPS[name]
    worst: dict[str, float] = {}
    for step, metrics in one.items():
        for metric, value in metrics.items():
            difference = abs(other[step][metric] - value)
            relative = difference if metric in SMALL else difference / abs(value)
            worst[metric] = max(worst.get(metric, 0.0), relative)
    print(f"\n{name}, {setup}: {max(worst.values()):.1e}")
    for metric, relative in worst.items():
        assert relative < SMALL.get(metric, TOLERANCE[name]), metric
    assert worst["env_steps"] == worst["episodes"] == worst["bad_environment"] == 0


@pytest.mark.parametrize("name", EITHER)
def test_so_are_the_evaluations(seen_by, name):
    found = seen_by(name, "8 devices")
    one, other = found["1 devices"]["end"], found["8 devices"]["end"]
    for metric in ("val/episode_return", "val/episode_length"):
        assert other[metric] == pytest.approx(one[metric], rel=TOLERANCE[name])


@pytest.mark.parametrize("name", EITHER)
def test_one_all_reduce_an_optimizer_step_and_none_in_physics(seen_by, name):
    """In a loop inside the iteration there is one message alone, in the loop over minibatches."""
    seen = seen_by(name, "8 devices")["8 devices"]["seen"]
    inside = [(kind, loops) for kind, loops in seen["collectives"] if len(loops) > 1]
    assert inside == [("all-reduce", [None, EPOCHS, MINIBATCHES])]
    once = [kind for kind, loops in seen["collectives"] if len(loops) < 2]
    assert set(once) == {"all-reduce"}
    assert len(once) <= 8
    assert seen["evaluation in loops"] == []


@pytest.mark.parametrize("name", EITHER)
def test_each_device_has_environments_of_its_own(seen_by, name):
    assert seen_by(name, "8 devices")["8 devices"]["seen"]["rows"] == [8]


def test_a_broken_environment_is_named_by_its_number(found):
    one, eight = found["broken"]
    assert one == eight
    assert "Environment" in one


def test_what_cannot_be_split_is_said(found):
    assert "EnvironmentDataModule.num_envs=100 cannot be split over 8 devices" in found["indivisible"]
    assert "PPOTask.num_minibatches=2: expected a multiple of 16. Nearest: 96, 112." in found["indivisible"]
    assert "num_envs=16" in found["few"]
    assert "expected a multiple of 32. Nearest: 32." in found["few"]


@pytest.mark.parametrize("kl", [0.0, 3e-9, -2e-9, 6e-7])
def test_rounding_does_not_decide_the_learning_rate(kl):
    """A rollout's first minibatch has no divergence but for rounding, which is another on each number of devices."""
    assert float(adapt_rate(jnp.float32(1e-3), jnp.float32(kl), 0.01)) == pytest.approx(1e-3)


@pytest.mark.parametrize(("num_envs", "parts"), [(64, 2), (96, 4), (48, 3), (512, 8)])
def test_minibatches_are_the_same_on_any_number_of_devices(num_envs, parts):
    whole = np.asarray(_shuffled_parts(jax.random.key(0), num_envs, parts))
    for shards in (2, 4, 8):
        if num_envs // parts % shards:
            continue
        own = num_envs // shards
        pieces = [
            np.asarray(_shuffled_parts(jax.random.key(0), own, parts, shards, shard)) + shard * own
            for shard in range(shards)
        ]
        for part in range(parts):
            assert {row for piece in pieces for row in piece[part]} == set(whole[part])


@pytest.mark.parametrize("shards", [3, 6, 16, 32])
def test_other_numbers_of_devices_deal_within_themselves(shards):
    own, parts = 12, 2
    pieces = [np.asarray(_shuffled_parts(jax.random.key(0), own, parts, shards, shard)) for shard in range(shards)]
    for piece in pieces:
        assert piece.shape == (parts, own // parts)
        assert sorted(piece.ravel()) == list(range(own))
    assert len({piece.tobytes() for piece in pieces}) > shards / 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), "slow" in sys.argv)
