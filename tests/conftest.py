"""Tests share the persistent compile cache, between processes and between runs."""

from galvanax.trainer.compile_cache import enable_compile_cache

enable_compile_cache()
