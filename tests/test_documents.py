"""docs/documents.md has a line for each promise of the documents, and what it names exists. Nothing is trained here."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import shlex
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tyro

import galvanax as gx
from galvanax.cli.callback_flags import SHIPPED
from galvanax.cli.fit import SHORT, FitCommand
from galvanax.cli.preset_flag import take_presets
from galvanax.experiments.registry import EXPERIMENTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "documents.md"

# How many promises each document has.
COUNTS = {"S0": 14, "S1": 21, "S2": 17, "S3": 18, "S4": 17}
ROWS = [f"{document}.{number}" for document, count in COUNTS.items() for number in range(1, count + 1)]


def prose(page: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def lines_of(page: str) -> list[list[str]]:
    """The cells of each line of a table, in the order of the page."""
    lines = [line for line in prose(page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in lines]


def promises(page: str) -> list[list[str]]:
    """The lines that open with a row's id."""
    return [cells for cells in lines_of(page) if re.fullmatch(r"S\d+\.\d+", cells[0])]


def ours(page: str) -> str:
    """The page without the documents' own names: the first column of the tables that go from there to here."""
    kept, there = [], False
    for line in prose(page).splitlines():
        there = line.startswith("| there |") or (there and line.startswith("|"))
        kept.append(line.split(" | ", 1)[1] if there and " | " in line else line)
    return "\n".join(kept)


def spans(text: str) -> list[str]:
    """What is marked as code within the text."""
    return re.findall(r"`([^`\n]+)`", text)


# What is wrong with a page. Each yields what the reader should be told.


def wrong_rows(page: str) -> Iterator[str]:
    """Ids that are missing, doubled, unknown or out of order; lines without a place, a test or a state."""
    found = [cells[0] for cells in promises(page)]
    counts = Counter(found)
    yield from (f"{row}: {counts[row]} lines" for row in sorted(set(ROWS) | set(found)) if counts[row] != (row in ROWS))
    if not (set(found) ^ set(ROWS)) and found != ROWS and len(found) == len(ROWS):
        yield "the rows are out of order"
    for cells in promises(page):
        if len(cells) != 5 or not all(cells):
            yield f"{cells[0]}: expected id, promise, here, shown by, state"
        elif not re.fullmatch(r"yes|partly: .+", cells[4]):
            yield f"{cells[0]}: state {cells[4]!r}; expected yes, or partly: what is missing"
        elif "](../tests/" not in cells[3]:
            yield f"{cells[0]}: no test shows it"


def wrong_links(page: str) -> Iterator[str]:
    """Files, headings and test functions that are not there."""
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", prose(page)):
        file, _, heading = target.partition("#")
        path = (PAGE.parent / file).resolve() if file else PAGE
        if not path.is_file():
            yield f"{target}: no such file"
        elif heading and heading not in headings(page if path == PAGE else path.read_text()):
            yield f"{target}: no such heading"
        elif text.startswith("test_") and text not in functions(path):
            yield f"{target}: no function {text}"
        elif path.name.startswith("test_") and not text.startswith("test_"):
            yield f"{target}: the link {text!r} names no test"
    for span in spans(ours(page)):
        if re.fullmatch(r"[\w-]+(/[\w.-]+)+\.(py|xml)|pyproject\.toml", span) and not (ROOT / span).is_file():
            yield f"{span}: no such file"


def headings(page: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@functools.cache
def functions(path: Path) -> set[str]:
    """The functions of a file, which is parsed and not imported."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def wrong_names(page: str) -> Iterator[str]:
    """`gx.` and `galvanax.` names, and the arguments in their brackets, that do not exist."""
    for span in spans(ours(page)):
        if not re.match(r"(gx|galvanax)\.", span):
            continue
        # `f(x=)` says that there is an x, and no value.
        try:
            expression = ast.parse(re.sub(r"=(?=\s*[,)])", "=...", span), mode="eval")
        except SyntaxError:
            yield f"{span}: expected a name, or a call"
            continue
        for node in ast.walk(expression):
            called = dotted(node.func) if isinstance(node, ast.Call) else None
            try:
                if name := called or dotted(node):
                    found = resolve(name)
            except AttributeError as error:
                yield f"{span}: {error}"
                break
            if called and isinstance(node, ast.Call):
                unknown = [word.arg for word in node.keywords if word.arg not in parameters(found)]
                yield from (f"{span}: {called} takes no {word}" for word in unknown)


def dotted(node: ast.AST) -> str | None:
    """`"gx.envs.load"` of that expression; None of others."""
    if isinstance(node, ast.Name) and node.id in ("gx", "galvanax"):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def resolve(name: str) -> Any:
    """What a dotted name stands for; of a field without a default, its type.

    Raises:
      AttributeError: there is no such name; says which part is not there.
    """
    found, path = gx, "galvanax"
    for part in name.split(".")[1:]:
        fields = {field.name: field.type for field in dataclasses.fields(found)} if is_record(found) else {}
        if hasattr(found, part):
            found = getattr(found, part)
        elif part in fields:
            found = fields[part]
        elif inspect.ismodule(found) and importlib.util.find_spec(f"{found.__name__}.{part}"):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            raise AttributeError(f"{path} has no {part}")
        path += f".{part}"
    return found


def is_record(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing) and isinstance(thing, type)


def parameters(thing: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What it takes, by name."""
    # Of a class that flax.nnx makes, the signature is that of its metaclass.
    return inspect.signature(thing.__init__ if inspect.isclass(thing) else thing).parameters


def wrong_commands(page: str) -> Iterator[str]:
    """Commands, experiments and flags of `galvanax` that do not exist."""
    for span in spans(ours(page)):
        words = shlex.split(span)
        if words[:1] != ["galvanax"]:
            continue
        if words[1] == "launch":  # its own flags come before the command that it starts
            at = words.index("fit")
            yield from unknown_flags(span, words[2:at], command_of("launch"))
            words = ["galvanax", *words[at:]]
        try:
            if words[1] == "fit" and len(words) > 2:
                if words[2] not in EXPERIMENTS:
                    yield f"{span}: no experiment {words[2]}"
                    continue
                experiment = EXPERIMENTS[words[2]]()
                yield from unknown_flags(span, words[3:], FitCommand(experiment))
                try:
                    take_presets(experiment, words[3:])
                except gx.ConfigError as error:
                    yield f"{span}: {error}"
            else:
                yield from unknown_flags(span, words[2:], command_of(words[1]))
        except ImportError:
            yield f"{span}: no command {words[1]}"


@functools.cache
def command_of(name: str) -> Any:
    """The dataclass whose fields are the command's flags."""
    module = importlib.import_module(f"galvanax.cli.{name}")
    return getattr(module, f"{name.capitalize()}Command")


def unknown_flags(span: str, words: list[str], command: Any) -> Iterator[str]:
    for flag in (word for word in words if re.match(r"--[a-z]", word)):
        spelled = SHORT.get(flag, flag) if isinstance(command, FitCommand) else flag
        path = spelled.removeprefix("--").replace("-", "_").split(".")
        # The parts of an experiment are flags by their own names.
        if isinstance(command, FitCommand) and path[0] in {field.name for field in dataclasses.fields(gx.Experiment)}:
            path = ["experiment", *path]
        if not is_flag(command, path):
            yield f"{span}: no flag {flag}"


def is_flag(record: Any, path: list[str]) -> bool:
    """Whether a field is there, at the end of the path, that the command line may set."""
    name, rest = path[0], path[1:]
    if isinstance(record, dict):  # callbacks: those of the experiment, and those that can be added
        callback = record.get(name, SHIPPED.get(name))
        return callback is not None and (not rest or is_flag(callback, rest))
    for field in dataclasses.fields(record) if dataclasses.is_dataclass(record) else ():
        if name == field.name or (name == f"no_{field.name}" and field.type is bool):
            suppressed = tyro.conf.Suppress in typing.get_args(field.type)[1:]
            return not suppressed and (not rest or is_flag(getattr(record, field.name), rest))
    return False


CHECKS = {
    "rows": wrong_rows,
    "links": wrong_links,
    "names": wrong_names,
    "commands": wrong_commands,
}


@pytest.mark.parametrize("kind", CHECKS)
def test_the_page(kind):
    assert list(CHECKS[kind](PAGE.read_text())) == []


def test_the_flags_that_the_page_names():
    """Those that stand for the documents' own, in rows S2.6 (whose table is on DynaFlow's page) and S4.10."""
    for experiment, names in {
        "go2-dynaflow": "--data --trainer.max-epochs --data.batch-size --data.horizon --task.learning-rate "
        "--task.weight-decay --callbacks.ema.decay --task.d-model --task.num-heads --task.depth --task.dropout "
        "--trainer.run-dir --callbacks.checkpoint.keep-every",
        "g1-ppo": "--data.num-envs --task.learning-rate --trainer.max-steps --trainer.run-dir --task.discount "
        "--task.entropy-coef --task.policy-hidden --task.value-hidden --callbacks.checkpoint.every "
        "--callbacks.wandb.mode",
    }.items():
        assert list(unknown_flags(experiment, names.split(), FitCommand(EXPERIMENTS[experiment]()))) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("| S1.7 |", "| S1.77 |", ["S1.7: 0 lines", "S1.77: 1 lines"]),
        ("| S1.7 |", "| S1.8 |", ["S1.7: 0 lines", "S1.8: 2 lines"]),
        ("| S4.6 | a G1 with 47 observations |", "| S4.6 |", ["S4.6: expected id, promise, here, shown by, state"]),
        ("(70 of them) | yes |", "(70 of them) | mostly |", ["S2.14: state 'mostly'; expected yes, or partly: what"]),
        ("[dynax](dynax.md)", "[dynax](dynaks.md)", ["dynaks.md: no such file"]),
        ("(#legged-robots)", "(#robots)", ["#robots: no such heading"]),
        ("(dynaflow.md#what-is-measured)", "(dynaflow.md#measured)", ["dynaflow.md#measured: no such heading"]),
        ("[test_csv](", "[test_cvs](", ["../tests/datamodules/test_trajectory_files.py: no function test_cvs"]),
        ("tests/tasks/test_ppo.py", "tests/test_ppo.py", ["../tests/test_ppo.py: no such file"]),
        ("`galvanax/envs/robots/go2.xml`:", "`galvanax/robots/go2.xml`:", ["galvanax/robots/go2.xml: no such file"]),
        ("`gx.read_trajectories`", "`gx.read_logs`", ["gx.read_logs: galvanax has no read_logs"]),
        ("`gx.FitResult.history`", "`gx.FitResult.rows`", ["gx.FitResult.rows: galvanax.FitResult has no rows"]),
        ("(transform_fn=, transform_layout=)", "(transform=)", ["gx.TrajectoryDataModule(transform=): gx.Trajectory"]),
        ("`gx.create_dataset(dt=)`", "`gx.create_dataset(time=)`", ["gx.create_dataset takes no time"]),
        ("`gx.GRUDynamics.load(run_dir=, ", "`gx.GRUDynamics.load(path=, ", ["gx.GRUDynamics.load takes no path"]),
        ("`galvanax doctor --only devices`", "`galvanax docter`", ["galvanax docter: no command docter"]),
        ("`galvanax doctor --only devices`", "`galvanax doctor --just x`", ["no flag --just"]),
        ("--num-samples 100 --batch 32", "--num-samples 100 --rows 32", ["no flag --rows"]),
        ("fit g1-ppo --data.num-envs 2048", "fit g2-ppo --data.num-envs 2048", ["no experiment g2-ppo"]),
        ("fit g1-ppo --data.num-envs 2048", "fit g1-ppo --data.environments 2048", ["no flag --data.environments"]),
        ("--callbacks.checkpoint.every steps:100", "--callbacks.emma.decay 0.9", ["no flag --callbacks.emma.decay"]),
        ("fit g1-ppo --trainer.run-dir", "fit g1-ppo --trainer.name", ["no flag --trainer.name"]),  # not for users
        (
            "fit pendulum --preset paper`: 1e-3",
            "fit pendulum --preset papre`: 1e-3",
            ["no preset 'papre'. Nearest: paper"],
        ),
        ("`galvanax launch --processes 4 ", "`galvanax launch --gpus 4 ", ["no flag --gpus"]),
    ],
)
def test_a_page_that_is_wrong(old, new, said):
    page = PAGE.read_text()
    assert old in page
    found = [problem for check in CHECKS.values() for problem in check(page.replace(old, new))]
    assert found
    for words in said:
        assert any(words in problem for problem in found), found


def test_defaults():
    """What the page's table of defaults says: fields by their own values, and the shipped experiments'."""
    table = PAGE.read_text().partition("\n## Defaults\n")[2].partition("\n## ")[0]
    seen = 0
    rows = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    for span in (span for span in spans(rows) if span.startswith("gx.")):
        call = ast.parse(span, mode="eval").body
        assert isinstance(call, ast.Call)
        known = parameters(resolve(ast.unparse(call.func)))
        for word in call.keywords:
            assert known[str(word.arg)].default == ast.literal_eval(word.value), span
            seen += 1
    assert seen == 24

    def parts(name):
        experiment = EXPERIMENTS[name]()
        clip, checkpoint = experiment.callbacks["clip"], experiment.callbacks["checkpoint"]
        ema = experiment.callbacks["ema"]
        return experiment.task, experiment.data, experiment.trainer, ema, checkpoint, clip

    _, data, trainer, _, _, clip = parts("pendulum")
    assert (data.batch_size, trainer.max_epochs, clip.threshold) == (128, 40, 1.0)
    task, data, trainer, _, checkpoint, _ = parts("double-cart-pole-gru")
    assert (task.hidden_size, task.learning_rate, task.weight_decay) == (128, 1e-3, 1e-5)
    assert (data.history, data.horizon, data.batch_size) == (11, 9, 32)
    assert (trainer.max_epochs, trainer.seed, checkpoint.keep_every) == (100, 42, gx.Epochs(10))
    task, data, trainer, ema, checkpoint, clip = parts("go2-dynaflow")
    assert (task.learning_rate, task.weight_decay, data.batch_size, data.horizon) == (2e-4, 1e-4, 64, 16)
    assert (task.d_model, task.num_heads, task.depth, task.dropout) == (384, 6, 3, 0.1)
    assert (trainer.max_epochs, ema.decay, clip.threshold, clip.by) == (100, 0.995, 1.0, "norm")
    assert (checkpoint.keep_best, checkpoint.keep_last, checkpoint.keep_every) == (1, 1, None)
    assert parts("pendulum-dynaflow")[3].decay == parts("cartpole-dynaflow")[3].decay == 0.995


def test_presets():
    """What the page's table says of them."""

    def parts(name, *presets):
        made = gx.load_experiment(name, *presets)
        return made.task, made.data, made.trainer, made.callbacks

    task, data, trainer, callbacks = parts("pendulum", "paper")
    assert (task.learning_rate, task.learning_rate_schedule, task.weight_decay) == (1e-3, "constant", 1e-4)
    assert (data.batch_size, trainer.max_epochs, callbacks["clip"].threshold) == (256, 100, 1.0)
    assert "ema" not in callbacks

    task, data, trainer, callbacks = parts("double-cart-pole-gru", "paper")
    assert (task.hidden_size, task.learning_rate, task.weight_decay) == (128, 1e-3, 1e-5)
    assert (task.learning_rate_schedule, task.dropout) == ("constant", 0.0)
    assert (task.loss_of, task.loss_units, task.loss_weights) == ("changes", "natural", "uniform")
    assert (task.coordinate_indices, task.absolute_coordinates) == ((0,), False)
    assert (data.history, data.horizon, data.batch_size) == (11, 9, 32)
    assert (trainer.max_epochs, trainer.seed, callbacks["checkpoint"].keep_every) == (100, 42, gx.Epochs(10))
    assert not {"clip", "ema"} & set(callbacks)

    for name in ("pendulum-dynaflow", "pendulum-stateflow", "cartpole-dynaflow", "go2-dynaflow"):
        rates = {"paper": (2e-4, 1e-4, 64, 16), "guide": (1e-4, 0.0, 32, 10)}
        for preset, (rate, decay, batch, horizon) in rates.items():
            task, data, trainer, callbacks = parts(name, preset)
            assert (task.learning_rate, task.weight_decay) == (rate, decay)
            assert (data.batch_size, data.horizon) == (batch, horizon)
            assert (task.d_model, task.num_heads, task.depth, task.dropout) == (384, 6, 3, 0.1)
            assert (task.learning_rate_schedule, task.loss_units, task.condition_dropout) == (
                "constant",
                "natural",
                0.0,
            )
            assert (task.ode_steps, trainer.max_epochs) == (1, 100)
            assert (callbacks["ema"].decay, callbacks["clip"].threshold) == (0.995, 1.0)
            assert callbacks["checkpoint"].keep_every == gx.Epochs(10)
        for size, (width, depth) in {"small": (128, 2), "medium": (256, 3), "large": (384, 3)}.items():
            task, _, _, _ = parts(name, size)
            assert (task.d_model, task.depth, task.d_model % task.num_heads) == (width, depth, 0)

    for name in ("go2-ppo", "g1-ppo", "h1-ppo", "h1_2-ppo"):
        task, data, trainer, _ = parts(name, "paper")
        assert (task.learning_rate, task.learning_rate_schedule, data.num_envs) == (3e-4, "constant", 4096)
        steps = 4096 * task.unroll_length
        assert 100e6 <= trainer.max_steps * steps < 100e6 + steps
    _, data, trainer, _ = parts("go2-ppo", "guide")
    assert (data.num_envs, trainer.max_steps) == (4096, 10_000)


def test_a_go2s_legs():
    """The page's order of a Go2's actions: there and back, from FR, FL, RR, RL to the joints of the environment."""
    (code,) = re.findall(r"^```python\n(order = .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    order = ast.literal_eval(code.splitlines()[0].partition("=")[2].strip())
    parts = ("hip", "thigh", "calf")
    theirs = [f"{leg}_{part}_joint" for leg in ("FR", "FL", "RR", "RL") for part in parts]
    joints = list(gx.envs.load("go2").joints)
    assert [theirs[index] for index in order] == joints
    assert [joints[index] for index in order] == theirs


def test_a_state_is_immutable():
    state = gx.envs.State(pipeline_state=None, obs=None, reward=0.0, done=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.reward = 1.0
    assert (state.replace(reward=1.0).reward, state.reward) == (1.0, 0.0)
