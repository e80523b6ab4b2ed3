"""What a compiled program does, read from its text (XLA's HLO): messages between devices, arithmetic, memory traffic.

XLA's own cost analysis counts a loop's body once; here it counts as often as it runs, where the text says how often.
The outermost loop of a training program goes over its steps: its body counts once, so that figures are of one step.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
ELEMENTWISE = (
    "add", "subtract", "multiply", "divide", "power", "remainder", "maximum", "minimum", "negate", "abs", "sign",
    "sqrt", "rsqrt", "cbrt", "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "tan",
    "sine", "cosine", "atan2", "erf", "select", "clamp", "compare",
)  # fmt: skip
# What only names or arranges memory.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional", "call",
)  # fmt: skip
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A message between devices.

    Attributes:
      kind: `"all-reduce"` and so on.
      nbytes: of the whole array that results on a device (of a reduce-scatter: that goes in).
      loops: how often each loop around it runs, outermost first; None where the text doesn't say.
      where: the operation's name in the traced program.
    """

    kind: str
    nbytes: float
    loops: tuple[int | None, ...]
    where: str

    @property
    def times(self) -> int:
        """How often it happens in a step."""
        return _product(self.loops)


@dataclasses.dataclass(frozen=True)
class Work:
    """A device's work in a step.

    Attributes:
      flops: floating-point operations: matrix products, and one for each entry of an elementwise operation.
      nbytes: read and written by operations, fused ones as one: an upper limit of memory traffic.
      kernels: operations, fused ones as one: what a GPU has to start.
      open_loops: loops inside the step whose length the text doesn't say; their bodies are counted once.
    """

    flops: float
    nbytes: float
    kernels: int
    open_loops: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def nbytes(self) -> float:
        return sum(_itemsize(dtype) * math.prod(dims) for dtype, dims in self.shapes)

    @property
    def size(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    def called(self, attribute: str) -> list[str]:
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[^\s,)]+)", self.rest)
        return re.findall(r"%([^\s,}]+)", found[1]) if found else []

    @property
    def branches(self) -> list[str]:
        return [
            name
            for attribute in ("branch_computations", "true_computation", "false_computation")
            for name in self.called(attribute)
        ]

    @property
    def trips(self) -> int | None:
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(found[1]) if found else None


Program = dict[str, dict[str, _Instruction]]


def collectives(text: str) -> list[Collective]:
    """The messages between devices, in the order of the text."""
    program, entry = _parse(text)
    found = []
    for computation, loops in _reached(program, entry):
        for one in program[computation].values():
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            operands = sum(program[computation][name].nbytes for name in one.operands)
            nbytes = operands if kind == "all-reduce" else max(operands, one.nbytes)
            where = re.search(r'op_name="([^"]*)"', one.rest)
            found.append(Collective(kind, nbytes, loops, where[1] if where else one.name))
    return found


def work(text: str) -> Work:
    """The arithmetic and memory traffic of a step."""
    program, entry = _parse(text)
    flops, nbytes, kernels, open_loops = 0.0, 0.0, 0, 0
    for computation, loops in _reached(program, entry):
        times = _product(loops)
        for one in program[computation].values():
            flops += times * _flops(program, computation, one)
            if one.opcode == "while":
                open_loops += bool(loops) and one.trips is None
            if one.opcode not in FREE:
                kernels += times
                nbytes += times * (one.nbytes + sum(program[computation][name].nbytes for name in one.operands))
    return Work(flops, nbytes, kernels, open_loops)


def _product(loops: tuple[int | None, ...]) -> int:
    return math.prod(trips or 1 for trips in loops)


def _itemsize(dtype: str) -> float:
    bits = _BITS.get(dtype) or (int(match[1]) if (match := re.match(r"[a-z]+(\d+)", dtype)) else 0)
    return bits / 8


def _reached(program: Program, entry: str) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """The computations that run by themselves (not inside a fusion), and the loops around each."""
    waiting = collections.deque[tuple[str, tuple[int | None, ...]]]([(entry, ())])
    while waiting:
        name, loops = waiting.popleft()
        yield name, loops
        for one in program[name].values():
            if one.opcode == "while":
                inner = (*loops, one.trips)
                waiting.extend((body, inner) for body in (*one.called("body"), *one.called("condition")))
            elif one.opcode == "conditional":
                waiting.extend((branch, loops) for branch in one.branches)
            elif one.opcode in ("call", "async-start"):
                waiting.extend((body, loops) for body in (*one.called("to_apply"), *one.called("calls")))


def _flops(program: Program, computation: str, one: _Instruction) -> float:
    if one.opcode in ELEMENTWISE:
        return one.size
    operands = [program[computation][name] for name in one.operands]
    if one.opcode == "dot":
        contracted = [int(place) for place in re.findall(r"\d+", _braces("lhs_contracting_dims", one.rest))]
        return 2 * one.size * math.prod(operands[0].shapes[0][1][place] for place in contracted)
    if one.opcode == "convolution":
        # Each output entry sums over a kernel, but for the kernel's output features.
        labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)
        kernel = operands[1].shapes[0][1]
        return 2 * one.size * math.prod(kernel) / max(1, kernel[labels[1].index("o")] if labels else 1)
    if one.opcode in ("reduce", "reduce-window"):
        return sum(operand.size for operand in operands) / 2  # the other half are initial values, or their indices
    if one.opcode == "fusion":
        return sum(_flops(program, body, part) for body in one.called("calls") for part in program[body].values())
    return 0.0


def _braces(attribute: str, text: str) -> str:
    found = re.search(rf"{attribute}=\{{([^}}]*)\}}", text)
    return found[1] if found else ""


def _parse(text: str) -> tuple[Program, str]:
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line):
            current = program[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif current is not None and (match := re.match(r"\s+(?:ROOT )?%?(\S+) = (.*)", line)):
            instruction = _instruction(match[1], match[2])
            current[instruction.name] = instruction
    return program, entry


def _instruction(name: str, text: str) -> _Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, text = text[:end], text[end:].lstrip()
    opcode, _, _ = text.partition("(")
    close = _closing(text, len(opcode))
    operands = tuple(re.findall(r"%([^\s,)]+)", text[len(opcode) : close]))
    shapes = tuple(
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result)
    )
    return _Instruction(name, opcode.strip(), shapes, operands, text[close + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0 and text[place] == ")":
            return place
    return len(text) - 1
