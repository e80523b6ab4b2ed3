"""The lines between the processes of a run: a socket from each to process 0.

Over them processes tell each other small things, JSON data, beside the devices' own traffic, which it neither waits for
nor delays. And the system closes a process's socket with it, however it dies: so the others learn at once who is gone,
while a collective operation of the devices at best breaks, and at worst waits for ever.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

from galvanax.errors import ConfigError, ProcessError
from galvanax.trainer.cluster import Cluster, split_address

GRACE = 20.0  # seconds that a process has to leave a run that cannot go on, before it is ended
SILENCE = 25  # seconds after which a machine that answers nothing counts as gone
GREETING = "galvanax 1"
LONGEST_HELLO, LONGEST = 4096, 2**24  # bytes of a line
RESUME = (
    'The others end, too. Go on from the last checkpoint, on any number of processes: resume="auto" (--resume auto).'
)

Entry = int  # into a common piece of work, counted


class Links:
    """What this process can say to the others of its run, and knows of them.

    Args:
      index: of this process.
      roster: machine and process id of each.
      sockets: to process 0; in process 0, to each of the others.
    """

    def __init__(self, index: int, roster: list[tuple[str, int]], sockets: dict[int, socket.socket]):
        self.index, self.count = index, len(roster)
        self._roster, self._sockets = roster, sockets
        self._sending, self._changed = threading.Lock(), threading.Condition()
        self._said: dict[tuple[int, int], dict[int, tuple[str, Any]]] = {}
        self._answers: dict[tuple[int, int], list[Any]] = {}
        self._left: set[int] = set()
        self._all_done = self._all_left = False
        self._lost: str | None = None
        self._ended: tuple[Entry, str] | None = None
        self._bad_since = 0.0
        self._entry, self._inside, self._number = 0, 0, 0
        threading.Thread(target=self._watch, name="links", daemon=True).start()

    @property
    def machines(self) -> list[str]:
        """Those that the processes are on."""
        return list(dict.fromkeys(host for host, _ in self._roster))

    def enter(self) -> None:
        """Begins a common piece of work: from now on, an error of one process is one of all."""
        with self._changed:
            self._inside += 1
            if self._inside == 1:
                self._entry, self._number = self._entry + 1, 0
                # What an error left unfinished.
                self._said = {key: said for key, said in self._said.items() if key[0] >= self._entry}

    def leave(self) -> None:
        """Ends what `enter` began."""
        with self._changed:
            self._inside -= 1

    def gather(self, label: str, value: Any) -> list[Any]:
        """What each process gives, in their order; returns once all have.

        Args:
          label: what this is about, the same in all of them.
          value: JSON data.

        Raises:
          ProcessError: one of them is gone, or somewhere else in the program.
        """
        with self._changed:
            self._number += 1
            key = (self._entry, self._number)
        if self.index == 0:
            self._take(0, key, label, value)
        else:
            self._send(0, {"say": key, "label": label, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: key in self._answers or self._trouble() is not None)
            if key in self._answers:
                return self._answers.pop(key)
            raise ProcessError(self._trouble())

    def trouble(self, seconds: float = 0.0) -> str | None:
        """Why the common work cannot go on, if it cannot; waits so long to hear of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._trouble() is not None, seconds)
            return self._trouble()

    def announce(self, error: str) -> None:
        """Tells the others that this process ends its common work by an error."""
        self._end(self.index, self._entry, error)

    def farewell(self) -> str | None:
        """Waits until all processes are done, and returns None; or returns why they will never be."""
        self.enter()
        if self.index == 0:
            self._part(0)
        else:
            self._send(0, {"bye": True})
        with self._changed:
            self._inside = 0  # it may take long, and no thread but this one waits
            self._changed.wait_for(lambda: self._all_left or self._trouble() is not None)
            return None if self._all_left else self._trouble()

    def let_go(self, seconds: float) -> None:
        """Process 0 waits until the others have gone: when it goes, jax ends them."""
        deadline = time.monotonic() + seconds
        while self.index == 0 and self._sockets and time.monotonic() < deadline:
            time.sleep(0.05)

    # What follows, but for `_send`, is called with news from the others or of this process.

    def _take(self, index: int, key: tuple[int, int], label: str, value: Any) -> None:
        """Process 0 hears what one of them gives."""
        with self._changed:
            said = self._said.setdefault(key, {})
            said[index] = (label, value)
            absent = sorted(self._left - said.keys())
            missing = len(said) < self.count
            labels = {place: said[place][0] for place in sorted(said)}
        if absent:
            self._end(absent[0], key[0], f"it ended, while process {index} is at {label!r}")
        elif len(set(labels.values())) > 1:
            where = ", ".join(f"process {place} is at {text!r}" for place, text in labels.items())
            self._end(index, key[0], f"the processes do different things: {where}")
        elif not missing:
            values = [said[place][1] for place in range(self.count)]
            with self._changed:  # so that an error that it leads one of them to reaches nobody before it
                for other in list(self._sockets):
                    self._send(other, {"all": key, "values": values})
                del self._said[key]
                self._answers[key] = values
                self._changed.notify_all()

    def _part(self, index: int) -> None:
        """Process 0 hears that one of them is done."""
        with self._changed:
            self._left.add(index)
            waiting = [(key, said) for key, said in self._said.items() if index not in said]
            self._all_done = len(self._left) == self.count
        if waiting:
            (key, said), *_ = waiting
            other, (label, _) = next(iter(said.items()))
            self._end(index, key[0], f"it ended, while process {other} is at {label!r}")
        if self._all_done:
            for other in list(self._sockets):
                self._send(other, {"all left": True})
            with self._changed:
                self._all_left = True  # not before they know: this process ends now
                self._changed.notify_all()

    def _end(self, index: int, entry: Entry, error: str) -> None:
        """One of them ended the common work by an error."""
        self._note_end(entry, f"{self.name(index)} stopped: {error}")

    def _note_end(self, entry: Entry, text: str) -> None:
        with self._changed:
            if self._ended is not None and self._ended[0] >= entry:
                return
            self._ended = (entry, text)
            self._bad_since = time.monotonic()
            self._changed.notify_all()
        for other in list(self._sockets):
            self._send(other, {"ended": text, "entry": entry})

    def _lose(self, index: int, text: str) -> None:
        """One of them is gone."""
        with self._changed:
            if self._all_done or self._lost is not None:
                return
            self._lost = text
            self._bad_since = time.monotonic()
            self._changed.notify_all()
        if index == 0:  # jax is about to end this process, too, by a signal
            _end(self._lost)
        for other in list(self._sockets):
            self._send(other, {"lost": self._lost, "index": index})

    def _trouble(self) -> str | None:
        # What ended by an error that all of them had is over when the next common work begins.
        return self._lost or (self._ended[1] if self._ended and self._ended[0] >= self._entry else None)

    def name(self, index: int) -> str:
        """Which process that is, for messages."""
        host, pid = self._roster[index]
        return f"process {index} of {self.count} ({host}, pid {pid})"

    def _send(self, index: int, message: dict[str, Any]) -> None:
        # Where the line is broken, the watching thread finds out.
        with self._sending, contextlib.suppress(OSError, KeyError):
            self._sockets[index].sendall(json.dumps(message).encode() + b"\n")

    def _watch(self) -> None:
        """Reads all lines; ends the process where it cannot leave by itself."""
        selector = selectors.DefaultSelector()
        for index, line in self._sockets.items():
            selector.register(line, selectors.EVENT_READ, (index, bytearray()))
        while True:
            for key, _ in selector.select(1.0) if selector.get_map() else ():
                index, buffer = key.data
                line = self._sockets[index]
                try:
                    data = line.recv(2**16)
                except OSError:
                    data = b""
                buffer += data
                wrong = self._hear_lines(index, buffer) if data else "its connection broke"
                if wrong:
                    selector.unregister(line)
                    del self._sockets[index]
                    line.close()
                    self._lose(index, f"{self.name(index)} was lost: {wrong}. {RESUME}")
            if not selector.get_map():
                time.sleep(1.0)
            self._end_if_stuck()

    def _hear_lines(self, index: int, buffer: bytearray) -> str | None:
        """Takes whole lines from what has come; returns what is wrong with it, if anything is."""
        while (end := buffer.find(b"\n")) >= 0:
            message = _parse(buffer[:end])
            del buffer[: end + 1]
            try:
                if message is None:
                    raise ValueError("no message")
                self._hear(index, message)
            except (KeyError, TypeError, ValueError):
                return "it said what makes no sense"
        return f"it said more than {LONGEST} bytes at once" if len(buffer) > LONGEST else None

    def _hear(self, index: int, message: dict[str, Any]) -> None:
        if "say" in message:
            self._take(index, tuple(message["say"]), message["label"], message["value"])
        elif "all" in message:
            with self._changed:
                self._answers[tuple(message["all"])] = message["values"]
                self._changed.notify_all()
        elif "bye" in message:
            self._part(index)
        elif "all left" in message:
            with self._changed:
                self._all_done = self._all_left = True
                self._changed.notify_all()
        elif "ended" in message:
            self._note_end(message["entry"], message["ended"])
        elif "lost" in message:
            self._lose(message["index"], message["lost"])

    def _end_if_stuck(self) -> None:
        """A collective operation on GPUs waits for a lost process for ever, and no exception reaches who waits."""
        with self._changed:
            trouble = self._trouble()
            stuck = self._inside > 0 and trouble is not None and time.monotonic() - self._bad_since > GRACE
        if stuck:
            _end(trouble)


def _end(why: str | None) -> None:
    print(f"galvanax: error: {why}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def meet(cluster: Cluster, timeout: float, note: int) -> tuple[Links, int]:
    """Waits until all processes of the cluster have come together.

    Args:
      cluster: them, and this one.
      timeout: seconds.
      note: a number that process 0 gives to all.

    Returns:
      The lines to them, and process 0's note.

    Raises:
      ConfigError: nobody answers at the coordinator's address, or not all have come in time; says who.
    """
    deadline = time.monotonic() + timeout
    me = (socket.gethostname(), os.getpid())
    if cluster.process_index == 0:
        sockets, roster = _receive_all(cluster, me, timeout, deadline)
        for line in sockets.values():
            _write(line, {"roster": roster, "note": note})
        links = Links(0, roster, sockets)
        return links, note
    line = _connect(cluster, timeout, deadline)
    # Process 0 may have come later, and says itself who is missing when its time is up.
    answer = _hello(cluster, line, me, deadline + timeout + 10)
    if answer is None or "refused" in answer:
        line.close()
        said = "the connection was closed, or something else answered" if answer is None else answer["refused"]
        raise ConfigError(f"Process {cluster.process_index} at {_where(cluster)}: {said}")
    roster = [(host, pid) for host, pid in answer["roster"]]
    return Links(cluster.process_index, roster, {0: line}), answer["note"]


def _receive_all(
    cluster: Cluster, me: tuple[str, int], timeout: float, deadline: float
) -> tuple[dict[int, socket.socket], list[tuple[str, int]]]:
    here: dict[int, tuple[socket.socket | None, tuple[str, int]]] = {0: (None, me)}
    with _listen(cluster) as server:
        while len(here) < cluster.num_processes:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                line, _ = server.accept()
            except TimeoutError:
                missing = [index for index in range(cluster.num_processes) if index not in here]
                came = ", ".join(f"{index} ({host}, pid {pid})" for index, (_, (host, pid)) in sorted(here.items()))
                error = (
                    f"{len(here)} of {cluster.num_processes} processes came within {timeout:g} s to {_where(cluster)}: "
                    f"{came}. Missing: {', '.join(map(str, missing))}."
                )
                for other, _ in here.values():
                    if other is not None:
                        _write(other, {"refused": error})
                raise ConfigError(error) from None
            hello = _read(line, 5.0, LONGEST_HELLO)
            if hello is None or not _is_hello(hello):
                line.close()  # somebody else's
                continue
            refusal = _refusal(cluster, hello, here)
            if refusal:
                _write(line, {"refused": refusal})
                line.close()
                continue
            here[hello["index"]] = (line, (hello["host"], hello["pid"]))
    sockets = {index: line for index, (line, _) in here.items() if line is not None}
    for line in sockets.values():
        _keep_alive(line)
    return sockets, [here[index][1] for index in range(cluster.num_processes)]


def _is_hello(hello: dict[str, Any]) -> bool:
    return (
        hello.get("galvanax") == GREETING
        and all(type(hello.get(name)) is int for name in ("index", "count"))  # True is no number
        and 0 <= hello["index"] < hello["count"]
        and _is_member([hello.get("host"), hello.get("pid")])
    )


def _is_answer(answer: dict[str, Any], count: int) -> bool:
    roster = answer.get("roster")
    met = isinstance(roster, list) and len(roster) == count and all(map(_is_member, roster))
    return isinstance(answer.get("refused"), str) or (met and type(answer.get("note")) is int)


def _is_member(member: Any) -> bool:
    """Whether this is machine and process id of a process."""
    return isinstance(member, list) and [type(value) for value in member] == [str, int]


def _refusal(cluster: Cluster, hello: dict[str, Any], here: dict[int, Any]) -> str | None:
    if hello["count"] != cluster.num_processes:
        return f"process 0 is one of {cluster.num_processes} processes, process {hello['index']} of {hello['count']}."
    if hello["index"] in here:
        host, pid = here[hello["index"]][1]
        return f"there is a process {hello['index']} already ({host}, pid {pid})."
    return None


def _listen(cluster: Cluster) -> socket.socket:
    host, port = split_address(cluster.coordinator, cluster.source)
    try:
        if cluster.is_local:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=cluster.num_processes)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=cluster.num_processes
            )
        return socket.create_server(("", port), backlog=cluster.num_processes)
    except OSError as error:
        raise ConfigError(f"Process 0 cannot listen at {_where(cluster)}: {error.strerror or error}.") from error


def _connect(cluster: Cluster, timeout: float, deadline: float) -> socket.socket:
    address, pause = split_address(cluster.coordinator, cluster.source), 0.1
    while True:
        try:
            line = socket.create_connection(address, timeout=max(0.1, min(5.0, deadline - time.monotonic())))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            _keep_alive(line)
            return line
        if time.monotonic() + pause > deadline:
            raise ConfigError(
                f"Process {cluster.process_index} of {cluster.num_processes} did not reach process 0 at "
                f"{_where(cluster)} in {timeout:g} s: {reason}. Does process 0 run there, and may this machine "
                "connect to that port?"
            )
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)


def _hello(cluster: Cluster, line: socket.socket, me: tuple[str, int], deadline: float) -> dict[str, Any] | None:
    hello = {"galvanax": GREETING, "index": cluster.process_index, "count": cluster.num_processes}
    _write(line, {**hello, "host": me[0], "pid": me[1]})
    answer = _read(line, max(1.0, deadline - time.monotonic()))
    line.settimeout(SILENCE)
    return answer if answer is not None and _is_answer(answer, cluster.num_processes) else None


def _where(cluster: Cluster) -> str:
    return f"{cluster.coordinator} (from {cluster.source})"


def _keep_alive(line: socket.socket) -> None:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Not on every system; there, jax's own heartbeats are what notices.
    for name, value in (("TCP_KEEPIDLE", SILENCE - 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE)
    line.settimeout(SILENCE)


def _write(line: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        line.sendall(json.dumps(message).encode() + b"\n")


def _read(line: socket.socket, seconds: float, longest: int = LONGEST) -> dict[str, Any] | None:
    """The next message; None where something else comes, or nothing in so many seconds."""
    data, deadline = bytearray(), time.monotonic() + seconds
    try:
        while not data.endswith(b"\n"):
            line.settimeout(max(0.001, deadline - time.monotonic()))
            part = line.recv(1)  # what lies behind it is the watching thread's
            if not part or len(data) > longest or time.monotonic() > deadline:
                return None
            data += part
    except OSError:
        return None
    return _parse(data)


def _parse(line: bytearray) -> dict[str, Any] | None:
    """The message that a line is; None where it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
