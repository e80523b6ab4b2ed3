"""Each kind of task that comes with the package, over one, two and four processes: the same losses but for rounding."""

import json

import pytest

# Sums over a batch in another order, carried on by six steps of Adam.
TOLERANCE = 5e-6
SMALL = {"train/policy_loss": 1e-5, "train/explained_variance": 1e-4, "train/kl": 1e-6}  # means near 0, by size
EXACT = ("env_steps", "episodes")
TASKS = ("acceleration", "gru", "dynaflow", "ppo")


@pytest.fixture(scope="module")
def one(nursery):
    """What one process found."""
    return {name: processes[0] for name, processes in run(nursery, 1).items()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(2, id="2 processes"),
        pytest.param(4, id="4 processes", marks=pytest.mark.slow),  # each compiles for itself
    ],
)
def several(request, nursery):
    """What each of several found."""
    return run(nursery, request.param)


def run(nursery, count):
    """`{task: [what each process found]}`."""
    group = nursery.start(count, "shipped", names=TASKS)
    assert group.wait(500) == [0] * count, group.text
    paths = {name: [nursery.folder / f"{name}.{count}.{index}.json" for index in range(count)] for name in TASKS}
    return {name: [json.loads(path.read_text()) for path in files] for name, files in paths.items()}


@pytest.mark.parametrize("name", TASKS)
def test_the_numbers_are_those_of_one_process(one, several, name):
    expected, found = one[name]["steps"], several[name][0]["steps"]
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


@pytest.mark.parametrize("name", TASKS)
def test_so_are_the_evaluations(one, several, name):
    first, *others = (process["end"] for process in several[name])
    assert any(metric.startswith("val/") for metric in first)
    for metric, value in one[name]["end"].items():
        if metric.startswith("val/"):
            assert first[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), metric
    assert all(other == first for other in others)
