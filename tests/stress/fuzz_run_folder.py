"""Run folders that were changed by accident or by a stranger, and everything that reads one.

    python tests/stress/fuzz_run_folder.py --mutants 1000 --seed 0 --processes 2
    python tests/stress/fuzz_run_folder.py --folder FOLDER --only 17     # one of them again, with all that is printed

Each mutant is a copy of a small run, changed in one to three ways (`fuzz_mutations`), and read by two or three commands
(`fuzz_readers`). Each command must succeed, or refuse in one line that names something of the folder; nothing that was
in the folder may go, but what a `fit` that trains is documented to replace; nothing outside may change; no code that
the folder holds or names may run; and no command may take two gigabytes or two minutes.
"""

import collections
import dataclasses
import faulthandler
import gc
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

CHUNK = 100  # mutants a process
MEMORY, DEADLY_MEMORY = 2e9, 3.5e9  # bytes, that a process may have
TIRED = 1.2e9  # bytes of a process between two mutants, after which another one takes over: compiled programs add up
MOST_ALIKE = 4  # violations that are printed of one kind
BY_MEMORY, BY_TIME = 86, 1  # exit statuses of a worker that is ended by its watchdogs


def main(
    mutants: int = 1000,
    seed: int = 0,
    processes: int = 2,
    only: int | None = None,
    folder: Path | None = None,
    runs: tuple[str, ...] = ("net", "line", "pendulum", "ppo", "flow"),
    kinds: tuple[str, ...] = (),
    seconds: int = 120,
    worker: str | None = None,
) -> None:
    """Prints how commands took what was changed; the exit status is 1 where anything was taken badly.

    Args:
      mutants: how many.
      seed: of all of them.
      processes: at the same time.
      only: do this one alone, here, and keep its folder.
      folder: to work in; the originals in it are used again, which gives the same mutants again.
      runs: which runs to change.
      kinds: of changes, such as link or JSON; by default all.
      seconds: that a command may take.
      worker: the numbers to do, as a process of another one.
    """
    root = folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    root.mkdir(parents=True, exist_ok=True)
    if worker is not None or only is not None:
        numbers = [only] if only is not None else json.loads(worker or "[]")
        with (root / f"results-{numbers[0]}.jsonl").open("a") as results:
            outcome = work(root, seed, numbers, runs, kinds, seconds, results, keep=only is not None)
        raise SystemExit(int(only is not None and outcome))
    began = time.monotonic()
    violations = survey(root, mutants, seed, max(1, processes), runs, kinds, seconds)
    print(f"{time.monotonic() - began:.0f} s; folder: {root}")
    if violations:
        raise SystemExit(1)
    if folder is None:
        shutil.rmtree(root)


def survey(
    root: Path, mutants: int, seed: int, processes: int, runs: tuple[str, ...], kinds: tuple[str, ...], seconds: int
) -> list[str]:
    """Lets processes do all mutants; prints a table and the violations, which it returns."""
    for old in root.glob("results-*.jsonl"):
        old.unlink()
    size = max(1, min(CHUNK, mutants // processes))
    waiting = [list(range(start, min(start + size, mutants))) for start in range(0, mutants, size)]
    flags = ["--folder", str(root), "--seed", str(seed), "--seconds", str(seconds), "--runs", *runs]
    flags += ["--kinds", *kinds] if kinds else []
    running: list[tuple[subprocess.Popen, list[int]]] = []
    made = (root / "originals").is_dir()
    rows: list[dict[str, Any]] = []
    while waiting or running:
        # The first process makes the originals.
        while waiting and len(running) < (processes if made or not running else 1):
            numbers = waiting.pop(0)
            command = [sys.executable, __file__, *flags, "--worker", json.dumps(numbers)]
            with (root / f"worker-{numbers[0]}.log").open("ab") as log:
                running.append((subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), numbers))
        time.sleep(0.2)
        made = made or any(path.stat().st_size for path in root.glob("results-*.jsonl"))
        for process, numbers in [one for one in running if one[0].poll() is not None]:
            running.remove((process, numbers))
            found, left = collect(root, numbers, process.returncode)
            rows += found
            if left:
                waiting.insert(0, left)
    return tell(rows, flags)


def collect(root: Path, numbers: list[int], status: int) -> tuple[list[dict[str, Any]], list[int]]:
    """What a process has found, and the mutants that are left since it died in one."""
    path = root / f"results-{numbers[0]}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [line for line in lines if "mutant" in line]
    done = {row["mutant"] for row in rows}
    left = [number for number in numbers if number not in done]
    if not left or status == 0:
        return rows, left
    started = next((line for line in reversed(lines) if line.get("started") == left[0]), None)
    log = (root / f"worker-{numbers[0]}.log").read_text(errors="replace")
    if started is None:
        raise RuntimeError(f"a worker died before mutant {left[0]}, status {status}:\n{log[-3000:]}")
    why = {BY_MEMORY: f"took more than {DEADLY_MEMORY / 1e9} GB", BY_TIME: "took too long"}.get(
        status, f"died: {status}"
    )
    started |= {"mutant": left[0], "violations": [f"{started['command']}: {why}\n{log[-2500:]}"], "commands": {}}
    return [*rows, started], left[1:]


def tell(rows: list[dict[str, Any]], flags: list[str]) -> list[str]:
    """Prints the table; returns the violations."""
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        counts = outcomes[row["kind"]]
        counts["mutants"] += 1
        counts["violations"] += len(row["violations"])
        counts.update(row["commands"].values())
    names = ("mutants", "fine", "refused", "violations")
    print(f"{'kind':18s}" + "".join(f"{name:>12s}" for name in names))
    for kind, counts in sorted(outcomes.items()):
        print(f"{kind:18s}" + "".join(f"{counts[name]:12d}" for name in names))
    total: collections.Counter[str] = sum(outcomes.values(), collections.Counter())
    print(f"{'all':18s}" + "".join(f"{total[name]:12d}" for name in names))
    worst = max(rows, key=lambda row: row.get("memory", 0))
    slowest = max(rows, key=lambda row: row.get("seconds", 0))
    print(f"most memory: {worst.get('memory', 0) / 1e9:.2f} GB (mutant {worst['mutant']})")
    print(f"slowest command: {slowest.get('seconds', 0):.0f} s (mutant {slowest['mutant']})")
    remarks: collections.Counter[str] = collections.Counter(remark for row in rows for remark in row.get("remarks", ()))
    print(*(f"{count} times: {remark}" for remark, count in remarks.items()), sep="\n", end="\n" if remarks else "")
    found = [
        (row["mutant"], f"mutant {row['mutant']} ({row['run']}: {row['what']})\n    {violation}", alike(violation))
        for row in rows
        for violation in row["violations"]
    ]
    told: collections.Counter[str] = collections.Counter()
    for _, text, kind in sorted(found):
        told[kind] += 1
        if told[kind] <= MOST_ALIKE:
            print(text)
    if found:
        print(*(f"{count} times: {kind}" for kind, count in told.most_common()), sep="\n")
        print(f"{len(found)} violations; again: python {sys.argv[0]} {' '.join(flags)} --only N")
    return [text for _, text, _ in found]


def alike(violation: str) -> str:
    """What violations of one cause have in common: their first words, without numbers."""
    words = violation.split(": ", 1)[-1].split(" at ")[-1].splitlines()[0]
    return re.sub(r"[\d.]+", "N", words)[:60]


# In a worker.


@dataclasses.dataclass
class Watch:
    """What must not happen while a command runs, as the interpreter and the system see it."""

    root: Path
    seen: list[str] = dataclasses.field(default_factory=list)
    peak: float = 0.0

    def start(self) -> None:
        """For good: hooks can't be removed."""
        sys.addaudithook(self._listen)
        threading.Thread(target=self._measure, daemon=True).start()

    def _listen(self, event: str, arguments: tuple) -> None:
        below = str(self.root / "mutants"), str(self.root / "outside")
        if event in ("exec", "compile"):
            name = arguments[1] if event == "compile" else getattr(arguments[0], "co_filename", "")
            if str(name).startswith(below):
                self.seen.append(f"code was run: {name}")
        elif event == "pickle.find_class":
            self.seen.append(f"unpickled: {arguments}")

    def _measure(self) -> None:
        while True:
            self.peak = max(self.peak, memory())
            if self.peak > DEADLY_MEMORY:
                faulthandler.dump_traceback()
                os._exit(BY_MEMORY)
            time.sleep(0.03)


def memory() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(
    root: Path,
    seed: int,
    numbers: Sequence[int],
    runs: tuple[str, ...],
    kinds: tuple[str, ...],
    seconds: int,
    results: IO[str],
    keep: bool,
) -> bool:
    """Does mutants, in this process, until it is tired; a line of `results` for each.

    Returns:
      Whether one was taken badly.
    """
    from stress import fuzz_readers as readers

    originals = {name: readers.make_original(name, root) for name in runs}
    watch = Watch(root)
    watch.start()
    bad = False
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name = rng.choices(runs, [readers.SHARES[name] for name in runs])[0]
        place = root / "mutants" / str(number)
        shutil.rmtree(place, ignore_errors=True)
        outcome = one_mutant(rng, number, name, place, originals, watch, kinds, seconds, results)
        print(json.dumps(outcome), file=results, flush=True)
        bad = bad or bool(outcome["violations"])
        if keep:
            print(
                f"mutant {number} ({name}: {outcome['what']}): {outcome['commands']}", *outcome["violations"], sep="\n"
            )
        if not keep and not outcome["violations"]:
            shutil.rmtree(place, ignore_errors=True)
        if memory() > TIRED:
            break
    return bad


def one_mutant(
    rng: random.Random,
    number: int,
    name: str,
    place: Path,
    originals: dict[str, Path],
    watch: Watch,
    kinds: tuple[str, ...],
    seconds: int,
    results: IO[str],
) -> dict[str, Any]:
    """Copies, changes and reads a run."""
    from stress import fuzz_readers as readers
    from stress.fuzz_checks import damaged_steps, gone, inventory, pruned_damage
    from stress.fuzz_mutations import mutate
    from stress.fuzz_scene import Scene

    run, out, outside = place / "run", place / "out", place.parents[1] / "outside" / str(number)
    out.mkdir(parents=True)
    shutil.copytree(originals[name], run)
    readers.make_outside(outside, originals[name])
    others = tuple(original for other, original in originals.items() if other != name) or (originals[name],)
    kind, what = mutate(rng, Scene(run, outside, place / "marker", others), kinds)
    row: dict[str, Any] = {"run": name, "kind": kind, "what": what, "commands": {}, "violations": [], "remarks": []}
    row |= {"memory": 0.0, "seconds": 0.0}
    known = readers.RUNS[name][1]
    chosen = rng.sample(known, min(len(known), rng.choice([2, 2, 3])))
    untouched = inventory(outside)
    for reader in chosen:
        print(json.dumps({**row, "started": number, "command": reader.name}), file=results, flush=True)
        before, damaged = inventory(run), damaged_steps(run)
        watch.seen, watch.peak = [], 0.0
        began = time.monotonic()
        outcome, said = call(reader, rng, run, out, seconds)
        took = time.monotonic() - began
        after = inventory(run)
        problems, remarks = [*said, *dict.fromkeys(watch.seen)], []
        problems += gone(reader, outcome, before, after)
        remarks += pruned_damage(damaged, after)
        if inventory(outside) != untouched:
            problems.append("something outside of the folder was changed")
            untouched = inventory(outside)
        if strangers := sorted(path.name for path in place.iterdir() if path.name not in ("run", "out")):
            problems.append(f"beside the folder there is now {strangers}")
            for path in place.iterdir():
                if path.name in strangers:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if watch.peak > MEMORY:
            problems.append(f"{watch.peak / 1e9:.2f} GB of memory")
        if took > seconds:
            problems.append(f"{took:.0f} s")
        row["commands"][reader.name] = outcome
        row["violations"] += [f"{reader.name}: {problem}" for problem in problems]
        row["remarks"] += remarks
        row["memory"], row["seconds"] = max(row["memory"], watch.peak), max(row["seconds"], took)
    shutil.rmtree(outside)
    return {"mutant": number, **row}


def call(reader: Any, rng: random.Random, run: Path, out: Path, seconds: int) -> tuple[str, list[str]]:
    """Reads a run; returns "fine" or "refused", and what is wrong with how."""
    from stress.fuzz_checks import complaints

    import galvanax as gx

    start = _printed()
    faulthandler.dump_traceback_later(seconds + 10, exit=True)
    outcome, problems, message = "fine", [], None
    try:
        reader.read(rng, run, out)
    except gx.GalvanaxError as error:
        outcome, message = "refused", str(error)
    except SystemExit as error:
        outcome, cause = "refused", error.__cause__
        message = str(cause) if isinstance(cause, gx.GalvanaxError) else ""
        if error.code != 2 or not message:
            problems.append(f"exit status {error.code} from {type(cause).__name__}: {cause}")
    except BaseException as error:
        outcome = "raised"
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in _frames(error)][-6:]
        problems.append(f"raised {type(error).__name__}: {str(error)[:300]!r} at {' '.join(frames)}")
    finally:
        faulthandler.cancel_dump_traceback_later()
    if message is not None:
        problems += complaints(message, run)
    if start is not None and "Traceback (most recent call last)" in _printed(start):
        gc.collect()  # some come late, when a task of Orbax is thrown away, and are not the next command's
        time.sleep(1)
        text = _printed(start)
        problems.append(f"printed a traceback: {text[text.index('Traceback') :][-400:]!r}")
    return outcome, problems


def _frames(error: BaseException) -> Iterator[Any]:
    import traceback

    yield from traceback.extract_tb(error.__traceback__)


def _printed(start: int | None = None) -> Any:
    """Where this process's output is, or what has come since; None where it goes to no file."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return None
    with open("/proc/self/fd/2", "rb") as file:
        if start is None:
            return file.seek(0, os.SEEK_END)
        file.seek(start)
        return file.read().decode(errors="replace")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
