"""The processes of a run, as scripts and callbacks see them: `gx.distributed.is_main()`."""

from galvanax.trainer.processes import barrier, count, each, from_main, gather, index, is_main, main_first
from galvanax.trainer.rendezvous import initialize

__all__ = ["barrier", "count", "each", "from_main", "gather", "index", "initialize", "is_main", "main_first"]
