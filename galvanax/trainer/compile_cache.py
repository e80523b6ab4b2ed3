"""XLA's persistent compile cache, on by default."""

import os
from pathlib import Path
from typing import Any

import jax


def enable_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start need not compile.

    Does nothing where the user has chosen a folder (`JAX_COMPILATION_CACHE_DIR`, or jax's own configuration) or turned
    the cache off (`JAX_ENABLE_COMPILATION_CACHE=0`).
    """
    chosen: Any = jax.config
    if chosen.jax_compilation_cache_dir or not chosen.jax_enable_compilation_cache:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "galvanax" / "xla"))
    # jax's own thresholds leave out everything that compiles in under a second or is small.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
