"""How a strategy is written on the command line."""

from typing import Any

import tyro

from galvanax.errors import ConfigError, nearest
from galvanax.trainer.strategy import FSDP, DataParallel, Partitioned, Strategy

METAVAR = "data|fsdp[:MIN_SIZE]|partitioned:data=N,model=N PATTERN=AXIS,AXIS..."
KINDS = ("data", "fsdp", "partitioned")


def strategy_rule(info: Any) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A tyro rule: `data`, `fsdp`, `fsdp:65536`, or `partitioned:data=2,model=4 "*/kernel=-,model"`.

    Each word behind `partitioned:...` is a rule: a pattern, and what its dimensions are split over: an axis, several
    joined by `+`, or `-` for none.
    """
    if not (isinstance(info.type, type) and issubclass(info.type, Strategy)):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=METAVAR,
        instance_from_str=parse_strategy,
        is_instance=lambda value: isinstance(value, Strategy),
        str_from_instance=write_strategy,
    )


def parse_strategy(words: list[str]) -> Strategy:
    """`["fsdp:65536"]` to `FSDP(65536)`.

    Raises:
      ValueError: the words mean no strategy; tyro says so.
    """
    first, *rules = words or [""]
    kind, _, setting = first.partition(":")
    try:
        if kind == "partitioned":
            axes = dict(part.split("=") for part in setting.split(","))
            return Partitioned({name: int(size) for name, size in axes.items()}, tuple(map(_parse_rule, rules)))
        if rules:
            raise ValueError(f"{kind} takes no rules: {' '.join(rules)}.")
        if kind == "fsdp":
            return FSDP(int(setting)) if setting else FSDP()
        if kind == "data" and not setting:
            return DataParallel()
    except (ConfigError, ValueError) as error:
        raise ValueError(f"{' '.join(words)!r} is no strategy: {error}") from error
    raise ValueError(f"expected {METAVAR}, got {' '.join(words)!r}.{nearest(kind, KINDS)}")


def write_strategy(strategy: Strategy) -> list[str]:
    """The words that `parse_strategy` reads; a class of the user's own has none but its name."""
    if isinstance(strategy, DataParallel):
        return ["data"]
    if isinstance(strategy, FSDP):
        return [f"fsdp:{strategy.min_size}"]
    if not isinstance(strategy, Partitioned):
        return [type(strategy).__name__]
    axes = ",".join(f"{name}={size}" for name, size in strategy.axes.items())
    rules = [f"{pattern}={','.join(map(_write_split, splits))}" for pattern, splits in strategy.rules]
    return [f"partitioned:{axes}", *rules]


def _parse_rule(word: str) -> tuple[str, tuple[Any, ...]]:
    pattern, equals, splits = word.rpartition("=")
    if not equals:
        raise ValueError(f"{word!r} is no rule such as '*/kernel=-,model'.")
    names = [tuple(split.split("+")) for split in splits.split(",") if split]
    return pattern, tuple(None if name == ("-",) else name[0] if len(name) == 1 else name for name in names)


def _write_split(split: Any) -> str:
    return "-" if split is None else split if isinstance(split, str) else "+".join(split)
