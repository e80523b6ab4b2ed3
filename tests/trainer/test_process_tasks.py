"""Each kind of task that comes with the package, over one, two and four processes: the same losses but for rounding."""

import functools
import json

import pytest

# Sums over a batch in another order, carried on by six steps of Adam.
TOLERANCE = 5e-6
SMALL = {"train/policy_loss": 1e-5, "train/explained_variance": 1e-4, "train/kl": 1e-6}  # means near 0, by size
EXACT = ("env_steps", "episodes")
TASKS = ("acceleration", "gru", "dynaflow", "ppo")


QUICK = ("acceleration", "ppo")
# Each process compiles for itself, so the others, and four processes, are of the slow run.
PAIRS = [
    pytest.param(
        count, name, id=f"{count} processes-{name}", marks=() if count == 2 and name in QUICK else pytest.mark.slow
    )
    for count in (2, 4)
    for name in TASKS
]


@pytest.fixture(scope="module")
def run(nursery):
    """`run(name, count)`: what each process found of a task."""

    @functools.cache
    def run_all(names, count):
        group = nursery.start(count, "shipped", names=names)
        assert group.wait(500) == [0] * count, group.text
        paths = {name: [nursery.folder / f"{name}.{count}.{index}.json" for index in range(count)] for name in names}
        return {name: [json.loads(path.read_text()) for path in files] for name, files in paths.items()}

    def one_of(name, count):
        return run_all(QUICK if name in QUICK else tuple(sorted({*TASKS} - {*QUICK})), count)[name]

    return one_of


@pytest.mark.parametrize(("count", "name"), PAIRS)
def test_the_numbers_are_those_of_one_process(run, count, name):
    expected, found = run(name, 1)[0]["steps"], run(name, count)[0]["steps"]
    assert len(expected) == len(found) == 6
    worst: dict[str, float] = {}
    for step, metrics in expected.items():
        for metric, value in metrics.items():
            difference = abs(found[step][metric] - value)
            relative = difference if metric in SMALL or value == 0 else difference / abs(value)
            worst[metric] = max(worst.get(metric, 0.0), relative)
    print(f"\n{name}: {max(worst.values()):.1e} in {max(worst, key=worst.get)}")
    for metric, relative in worst.items():
        assert relative <= (0 if metric.endswith(EXACT) else SMALL.get(metric, TOLERANCE)), metric


@pytest.mark.parametrize(("count", "name"), PAIRS)
def test_so_are_the_evaluations(run, count, name):
    first, *others = (process["end"] for process in run(name, count))
    assert any(metric.startswith("val/") for metric in first)
    for metric, value in run(name, 1)[0]["end"].items():
        if metric.startswith("val/"):
            assert first[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    assert all(other == first for other in others)
