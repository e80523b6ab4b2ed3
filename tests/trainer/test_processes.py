"""Runs over four, two and one processes: the same batches, the same noise, the same losses but for rounding.

The processes are real ones that meet over loopback, with one CPU device each. A life of four processes trains a
sharded run, evaluates, is refused what makes no sense, trains on, and loses one of them to a SIGKILL; two processes and
then one take both runs over.
"""

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import LineTask, line_data
from trainer.device_cases import logs, motions
from trainer.process_cases import EXACT, STEPS

import galvanax as gx
from galvanax.datamodules.arrays import BatchDataset
from galvanax.runs.weights import read_weights
from galvanax.trainer.cluster import OWN, Cluster
from galvanax.trainer.links import Links, meet

TOLERANCE = 1e-5  # sums over a batch in another order, carried on by 44 steps of Adam; measured: 2.0e-7
KILLED = 2


@pytest.fixture(scope="module")
def lives(nursery):
    """What the processes found, by name and process, and how they ended."""
    folder, ends = nursery.folder, {}
    group = nursery.start(4, "four")
    group.wait_for("saves 21")
    killed = time.monotonic()
    os.kill(group.pids[KILLED], signal.SIGKILL)
    ends["four"] = group.wait(90)
    ends["seconds"] = {index: when - killed for index, when in group.ended.items()}
    ends["pids"], ends["logs"] = group.pids, [log.read_text() for log in group.logs]
    for count, until in ((2, 33), (1, STEPS)):
        group = nursery.start(count, "resume", until=until, evaluated=count == 1)
        assert group.wait() == [0] * count, group.text
    found = {}
    for path in folder.glob("*.json"):
        name, count, index, _ = path.name.split(".")
        found.setdefault(name, {}).setdefault(int(count), {})[int(index)] = json.loads(path.read_text())
    return folder, ends, found


def steps_of(found, run, what="train"):
    """`{step: metrics}` of a run's parts, each by the process that stands for its group."""
    parts = {}
    for name, groups in found.items():
        if name.startswith(f"{run}-"):
            for processes in groups.values():
                parts |= {int(step): metrics for step, metrics in processes[0][what].items()}
    return dict(sorted(parts.items()))


@pytest.mark.parametrize("run", ["sharded", "killed"])
def test_sees_the_same_batches_and_the_same_noise(lives, run):
    whole, moved = steps_of(lives[2], "whole"), steps_of(lives[2], run)
    assert list(whole) == list(moved) == list(range(1, STEPS + 1))
    for step, metrics in moved.items():
        exact = {f"train/{name}" for name in EXACT}
        assert {name: metrics[name] for name in exact} == {name: whole[step][name] for name in exact}, step
    assert len({metrics["train/order"] for metrics in moved.values()}) == STEPS


@pytest.mark.parametrize("run", ["sharded", "killed"])
@pytest.mark.parametrize("metric", ["train/loss", "train/mae", "train/grad_norm"])
def test_has_the_same_losses(lives, run, metric):
    whole, moved = (
        np.array([metrics[metric] for metrics in steps_of(lives[2], one).values()]) for one in ("whole", run)
    )
    print(f"\n{metric}, {run}: largest relative difference {np.max(np.abs(moved / whole - 1)):.1e}")
    np.testing.assert_allclose(moved, whole, rtol=TOLERANCE)


@pytest.mark.parametrize("run", ["sharded", "killed"])
def test_validates_the_same(lives, run):
    whole, moved = steps_of(lives[2], "whole", "val"), steps_of(lives[2], run, "val")
    assert set(moved) >= {10, 20, 30, 40, STEPS}
    for step in set(whole) & set(moved):
        for name, value in whole[step].items():
            assert moved[step][name] == pytest.approx(value, rel=TOLERANCE), (step, name)


def test_all_processes_measure_the_same(lives):
    for name in ("sharded-21", "sharded-33", "killed-33", "evaluated"):
        for processes in lives[2][name].values():
            assert all(one == processes[0] for one in processes.values()), name


def test_evaluates_and_predicts_as_one_process(lives):
    one, four = lives[2]["evaluated"][1][0], lives[2]["evaluated"][4][0]
    for name, value in one["test"].items():
        assert four["test"][name] == pytest.approx(value, rel=1e-6)
    assert np.shape(four["predicted"]) == (50, 2)
    np.testing.assert_allclose(four["predicted"], one["predicted"], rtol=1e-5, atol=1e-6)


def test_a_signal_to_one_is_a_signal_to_all(lives):
    assert {one["ended"] for one in lives[2]["sharded-21"][4].values()} == {"status 75 at step 21"}
    assert {one["ended"] for one in lives[2]["sharded-33"][2].values()} == {"status 75 at step 33"}
    assert sum("SIGTERM at step 21: saved" in log for log in lives[1]["logs"]) == 1


def test_logs_each_step_once(lives):
    tables = [(lives[0] / name / "metrics.csv").read_text().splitlines() for name in ("whole", "sharded", "killed")]
    steps = [[line.split(",")[0] for line in table] for table in tables]
    assert steps[0] == steps[1] == steps[2]


def test_has_the_same_weights_in_the_end(lives):
    whole, *others = (read_weights(lives[0] / name, "last") for name in ("whole", "sharded", "killed"))
    assert {weights.meta["step"] for weights in (whole, *others)} == {STEPS}
    for other in others:
        for name, array in (whole.params | whole.variables).items():
            found = (other.params | other.variables)[name]
            np.testing.assert_allclose(found, array, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_a_lost_process_ends_the_others(lives):
    _, ends, _ = lives
    print(f"\nthe others end {max(ends['seconds'].values()):.1f} s after the SIGKILL")
    assert ends["four"] == [-signal.SIGKILL if index == KILLED else 1 for index in range(4)]
    assert max(ends["seconds"].values()) < 60
    for index in {0, 1, 3}:
        said = ends["logs"][index]
        # An exception where a process hears of it in time; where it waits for the lost one's data, it is ended.
        assert re.search(rf"(ProcessError|galvanax: error): process {KILLED} of 4", said), said
        assert f"pid {ends['pids'][KILLED]}) was lost" in said
        assert "resume=" in said


@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        ("odd", "ConfigError", r"30 rows cannot be split over 4 devices. Nearest batch sizes: 28, 32"),
        ("few", "ConfigError", r"2 rows cannot be split over 4 devices. Nearest batch sizes: 4"),
        ("devices", "ConfigError", r"leave processes 2, 3 without any"),
        ("machines", "ConfigError", r"num_nodes=2, but the run is on 1 machine \(4 processes\): \w"),
        ("settings", "ConfigError", r"task.noise is 0.01 in processes 0, 1, 2 and 0.5 in process 3"),
        ("setup", "DataError", r"^no such file"),
        ("taken", "RunDirError", r"sharded holds another run"),
    ],
)
def test_is_refused_in_every_process(lives, case, kind, text):
    for index in range(4):
        found, said = lives[2]["refused"][4][index][case]
        assert found == kind
        assert re.search(text, said), said
    assert not lives[2]["refused"][4][0]["folder"]


def test_an_error_of_one_is_named_by_the_others(lives):
    for index in range(4):
        found = lives[2]["refused"][4][index]
        if index == 1:
            assert found["mine"] == ["ValueError", "mine"]
        else:
            assert found["mine"][0] == "ProcessError"
            assert re.search(r"process 1 of 4 .* stopped: ValueError: mine", found["mine"][1])
        assert found["heard"] == [found["mine"]], "callbacks hear of the cause"
        own = index == 2
        assert found["one"][0] == ("ValueError" if own else "ProcessError")
        assert re.search("no such file" if own else r"process 2 of 4 .* stopped: ValueError: no such", found["one"][1])
        assert found["none"] is None  # and the next run is not disturbed


def test_process_0_is_lost(nursery):
    group = nursery.start(3, "lines")
    group.wait_for("steps")
    begin = time.monotonic()
    os.kill(group.pids[0], signal.SIGKILL)
    statuses = group.wait(90)
    print(f"\nthe others end {max(group.ended.values()) - begin:.1f} s after the SIGKILL of process 0")
    assert max(group.ended.values()) - begin < 60
    assert statuses[0] == -signal.SIGKILL
    # jax ends them at the same moment, by a SIGABRT.
    assert set(statuses[1:]) <= {1, -signal.SIGABRT}
    for log in group.logs[1:]:
        assert re.search(r"process 0 of 3 .* was lost|another task died", log.read_text())


JOINS = """
import galvanax as gx

input()
gx.distributed.initialize()
print("joined", gx.distributed.count(), flush=True)
input()
"""


def listening(pid: int) -> list[tuple[str, int]]:
    """Address and port of each socket at which a process listens."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(path)))
    found = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in inodes:  # LISTEN
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found.append((str(getattr(ip, "ipv4_mapped", None) or ip), int(port, 16)))
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists() or sys.byteorder != "little", reason="reads Linux's tables")
def test_on_one_machine_nothing_listens_to_others(tmp_path):
    port = int(clusters(1)[0].coordinator.split(":")[1])
    common = {name: value for name, value in os.environ.items() if name not in OWN} | {
        "MASTER_ADDR": socket.gethostname(), "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "x", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    # Gloo's can't be kept from listening where the machine's name leads to.
    own = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    with contextlib.ExitStack() as stack:
        processes = []
        for index, log in enumerate(logs):
            process = subprocess.Popen(
                [sys.executable, "-c", JOINS],
                env=common | {"RANK": str(index), "LOCAL_RANK": str(index)},
                stdin=subprocess.PIPE,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)

        def go_on(*indices):
            for index in indices:
                processes[index].stdin.write(b"\n")
                processes[index].stdin.flush()

        def wait_until(condition):
            deadline = time.monotonic() + 600  # of a machine that has other work, too
            while not condition():
                assert [process.poll() for process in processes] == [None, None], [log.read_text() for log in logs]
                assert time.monotonic() < deadline
                time.sleep(0.02)

        go_on(0)
        wait_until(lambda: listening(processes[0].pid))
        assert listening(processes[0].pid) == [("127.0.0.1", port)]  # where they meet, until they have
        go_on(1)
        wait_until(lambda: all("joined 2" in log.read_text() for log in logs))
        zero, one = (listening(process.pid) for process in processes)
        print(f"\nprocess 0 listens at {zero}, process 1 at {one}")
        for address, _ in zero + one:
            assert ipaddress.ip_address(address).is_loopback or address in own
        assert "127.0.0.1" in {address for address, _ in zero}  # jax's service
        go_on(0, 1)
        assert [process.wait(60) for process in processes] == [0, 0], [log.read_text() for log in logs]


# Meeting, and talking, without jax: the processes are threads here.


def clusters(count: int) -> list[Cluster]:
    """Of processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Cluster(f"127.0.0.1:{port}", count, index, "MASTER_ADDR") for index in range(count)]


def at_once(*functions):
    """What functions return or raise, called in threads."""
    outcomes = [None] * len(functions)

    def call(place):
        try:
            outcomes[place] = functions[place]()
        except Exception as error:
            outcomes[place] = error

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def links_of(count: int):
    """Connected ones."""
    met = at_once(*(lambda cluster=cluster: meet(cluster, 20, 7) for cluster in clusters(count)))
    assert [note for _, note in met] == [7] * count
    return [links for links, _ in met]


def test_the_coordinator_cannot_be_reached():
    begin = time.monotonic()
    with pytest.raises(gx.ConfigError, match=r"process 0 at 127.0.0.1:\d+ \(from MASTER_ADDR\) in 1 s: .*refused"):
        meet(clusters(3)[1], 1.0, 0)
    assert time.monotonic() - begin < 10


def test_the_coordinator_has_no_address():
    with pytest.raises(gx.ConfigError, match=r"nowhere.invalid:9 \(from GALVANAX_COORDINATOR\) in 0.5 s"):
        meet(Cluster("nowhere.invalid:9", 2, 1, OWN[0]), 0.5, 0)


def test_some_processes_never_come():
    zero, one, *_ = clusters(4)
    for error in at_once(lambda: meet(zero, 1.5, 0), lambda: meet(one, 1.5, 0)):
        assert isinstance(error, gx.ConfigError)
        assert re.search(r"2 of 4 processes came within 1.5 s .*Missing: 2, 3", str(error)), error
        assert str(os.getpid()) in str(error)


def test_a_process_comes_twice():
    zero, one, two = clusters(3)
    outcomes = at_once(
        lambda: meet(zero, 20, 0), lambda: meet(one, 20, 0), lambda: (time.sleep(0.5), meet(one, 20, 0)),
        lambda: (time.sleep(1.5), meet(two, 20, 0)),
    )  # fmt: skip
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert len(errors) == 1
    assert "there is a process 1 already" in str(errors[0])


def test_the_numbers_of_processes_differ():
    zero, one = clusters(2)
    other = Cluster(zero.coordinator, 3, 1, "MASTER_ADDR")
    outcomes = at_once(lambda: meet(zero, 20, 0), lambda: meet(other, 20, 0), lambda: (time.sleep(1), meet(one, 20, 0)))
    assert "process 0 is one of 2 processes, process 1 of 3" in str(outcomes[1])
    assert not isinstance(outcomes[0], Exception)


def test_a_stranger_calls():
    zero, one = clusters(2)

    def call():
        time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", int(zero.coordinator.split(":")[1]))) as line:
            line.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.5)

    outcomes = at_once(lambda: meet(zero, 20, 0), call, lambda: (time.sleep(1), meet(one, 20, 0)))
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)


HELLO = {"galvanax": "galvanax 1", "index": 1, "count": 2, "host": "h", "pid": 7}
MALFORMED = [
    *({**HELLO, name: wrong} for name in ("index", "count", "pid") for wrong in (None, "1", 1.0, True, [1], {})),
    *({**HELLO, "host": wrong} for wrong in (None, 1, ["h"])),
    *({key: value for key, value in HELLO.items() if key != name} for name in HELLO),
    *({**HELLO, "index": index} for index in (-1, 2, 10**30)),
    {**HELLO, "count": -2},
    [HELLO],
    "hello",
]


def test_greetings_that_make_no_sense():
    zero, one = clusters(2)
    answers = []

    def call():
        time.sleep(0.3)
        lines = [json.dumps(hello).encode() for hello in MALFORMED]
        for data in (*lines, b"", b"{", b"\xff\xfe", b"[" * 4000, b"{" * 5000):
            with socket.create_connection(("127.0.0.1", int(zero.coordinator.split(":")[1])), timeout=10) as line:
                try:
                    line.sendall(data + b"\n")
                    answers.append(line.recv(100))
                except ConnectionResetError:  # it has not read it all
                    answers.append(b"")

    outcomes = at_once(lambda: meet(zero, 20, 7), lambda: (call(), meet(one, 20, 0))[1])
    assert [outcome[1] for outcome in outcomes] == [7, 7], outcomes
    assert answers == [b""] * (len(MALFORMED) + 5)


@pytest.mark.parametrize(
    "answer",
    [{}, {"refused": 1}, {"roster": [["h", 1]], "note": 7}, {"roster": [["h", 1], ["h", None]], "note": 7},
     {"roster": [["h", 1], 5], "note": 7}, {"roster": [["h", 1], ["h", 2]]}, []],
)  # fmt: skip
def test_an_answer_that_makes_no_sense(answer):
    _, one = clusters(2)

    def serve():
        with socket.create_server(("127.0.0.1", int(one.coordinator.split(":")[1]))) as server:
            line, _ = server.accept()
            with line:
                line.sendall(json.dumps(answer).encode() + b"\n")
                line.recv(10**4)

    _, error = at_once(serve, lambda: meet(one, 5, 0))
    assert isinstance(error, gx.ConfigError), error
    assert "something else answered" in str(error)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "makes no sense"),
        (b"[" * 10**6 + b"\n", "makes no sense"),
        (b"5\n", "makes no sense"),
        (b'{"say": [[1], 2], "label": "x", "value": 0}\n', "makes no sense"),
        (b'{"say": [1, 1]}\n', "makes no sense"),
        (b"x" * (2**24 + 2**17), "more than 16777216 bytes"),
    ],
)
def test_a_line_that_makes_no_sense_is_a_lost_process(data, says):
    here, there = socket.socketpair()
    links = Links(0, [("a", 1), ("b", 2)], {1: here})
    there.settimeout(20)
    with there, contextlib.suppress(ConnectionError):
        there.sendall(data)
        assert there.recv(2**16) == b""
    assert re.search(rf"process 1 of 2 \(b, pid 2\) was lost: it said .*{says}.*resume=", links.trouble(10))


def test_the_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(gx.ConfigError, match=f"cannot listen at {address}"):
            meet(Cluster(address, 2, 0, OWN[0]), 1, 0)


def test_gathers_in_order():
    links = links_of(3)
    for turn in range(20):
        values = at_once(*(lambda one=one, turn=turn: one.gather("turn", [turn, one.index]) for one in links))
        assert values == [[[turn, 0], [turn, 1], [turn, 2]]] * 3


def test_processes_that_do_different_things():
    links = links_of(2)
    for error in at_once(lambda: links[0].gather("save", 0), lambda: links[1].gather("dispatch", 0)):
        assert isinstance(error, gx.ProcessError)
        assert "process 0 is at 'save', process 1 is at 'dispatch'" in str(error)


def test_one_ends_while_others_wait():
    links = links_of(3)
    threading.Thread(target=links[2].farewell, daemon=True).start()
    for error in at_once(lambda: links[0].gather("x", 0), lambda: links[1].gather("x", 0)):
        assert isinstance(error, gx.ProcessError)
        assert re.search(r"process 2 of 3 .* ended, while process [01] is at 'x'", str(error))


def test_an_error_ends_one_piece_of_work_and_not_the_next():
    links = links_of(2)
    for one in links:
        one.enter()
    links[1].announce("ValueError: mine")
    with pytest.raises(gx.ProcessError, match=r"process 1 of 2 .* stopped: ValueError: mine"):
        links[0].gather("x", 0)
    for one in links:
        one.leave()
        one.enter()
    assert at_once(lambda: links[0].gather("x", 0), lambda: links[1].gather("x", 1)) == [[0, 1]] * 2


def test_all_say_goodbye():
    assert at_once(*(one.farewell for one in links_of(3))) == [None] * 3


# This process, alone.


@pytest.fixture
def environment(monkeypatch):
    """Speaks of two processes."""
    for name, value in zip(OWN, ("127.0.0.1:9", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)


def test_fit_without_the_others(environment):
    with pytest.raises(gx.ConfigError, match=r"process 1 of 2 .*GALVANAX_COORDINATOR.*gx.distributed.initialize\(\)"):
        gx.Trainer(max_steps=1).fit(LineTask(), line_data())


def test_alone_on_its_machine():
    gx.Trainer(max_steps=1, num_nodes=1).fit(LineTask(), line_data())
    with pytest.raises(gx.ConfigError, match=r"num_nodes=2, but the run is on 1 machine \(1 process\)"):
        gx.Trainer(max_steps=1, num_nodes=2).fit(LineTask(), line_data())


def test_joins_too_late(environment):
    gx.Trainer  # noqa: B018
    jax.devices()
    with pytest.raises(gx.ConfigError, match="jax has its devices already"):
        gx.distributed.initialize()


def test_alone_there_is_nothing_to_join(monkeypatch):
    gx.distributed.initialize()
    monkeypatch.setenv("GALVANAX_NUM_PROCESSES", "1")
    gx.distributed.initialize()
    assert (gx.distributed.count(), gx.distributed.index(), gx.distributed.is_main()) == (1, 0, True)
    assert gx.distributed.gather("x", 3) == [3]


@pytest.mark.behaviour("peers 97")
@pytest.mark.parametrize("seed", [None, 3])
def test_reads_its_own_rows_alone(seed):
    x = np.arange(40)
    whole, part = (BatchDataset({"x": x}, 8, seed=seed), BatchDataset({"x": x}, 8, seed=seed).only(slice(2, 6)))
    for index in range(12):
        np.testing.assert_array_equal(part[index]["x"], whole[index]["x"][2:6])


@pytest.mark.parametrize("kind", ["logs", "weighted logs", "motions"])
def test_gathers_its_own_rows_alone(tmp_path, kind):
    data = motions(tmp_path / "motions") if kind == "motions" else logs(tmp_path / "logs")
    if kind == "weighted logs":
        sources = tuple(f"{data.data}/{names}.npz" for names in ("[0-4]", "[5-9]"))
        data = dataclasses.replace(data, data=sources, weights=(1.0, 3.0), val_ratio=0.2, test_ratio=0.2)
    whole = data.train_dataset(5)
    part = whole.only(slice(4, 12))
    assert len(part) == len(whole)
    for index in (0, 1, len(whole) - 1):
        expected, found = whole[index], part[index]
        assert expected.keys() == found.keys()
        for name, rows in expected.items():
            assert len(rows) == data.batch_size
            np.testing.assert_array_equal(found[name], rows[4:12])
