"""Calling the callbacks."""

import logging
from typing import Any

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.files import dump_json, load_json

log = logging.getLogger("galvanax")


class Hooks:
    """The callbacks whose host methods this process calls, and what they raise.

    What happens is told to all of them before the error of one ends the run: so a checkpoint that is taken then, holds
    of all the others what belongs to its step.

    Args:
      callbacks: by name, in the order in which they are called.
    """

    def __init__(self, callbacks: dict[str, Callback]):
        self.callbacks = callbacks
        self._begun: list[Callback] = []
        self._errors: list[Exception | SystemExit] = []

    def begin(self, run: RunView, host: dict[str, Any]) -> None:
        """Starts them, with the host state that a checkpoint kept of them. The first error is raised at once."""
        for callback in self.callbacks.values():
            callback.on_fit_start(run)
            self._begun.append(callback)
        for name, callback in self.callbacks.items():
            if name in host:
                callback.restore_host_state(host[name])

    def emit(self, hook: str, *arguments: Any) -> None:
        """Calls a host method of each; errors wait for `raise_first`."""
        for callback in self.callbacks.values():
            self.call(callback, hook, *arguments)

    def call(self, callback: Callback, hook: str, *arguments: Any) -> Any:
        """Calls a host method of one of them; an error waits for `raise_first`."""
        try:
            return getattr(callback, hook)(*arguments)
        except (Exception, SystemExit) as error:
            self._errors.append(error)
            return None

    def raise_first(self) -> None:
        """Raises the first error since the last time."""
        errors, self._errors = self._errors, []
        for other in errors[1:]:
            log.warning("another callback failed, too: %s: %s", type(other).__name__, other)
        if errors:
            raise errors[0]

    def host_states(self) -> dict[str, Any]:
        """What each of them gives a checkpoint to keep, copied; one that fails keeps nothing, and its error waits."""
        states: dict[str, Any] = {}
        for name, callback in self.callbacks.items():
            state = self.call(callback, "host_state")
            try:
                states |= {} if state is None else {name: load_json(dump_json(state))}
            except (TypeError, ValueError) as error:
                self._errors.append(TypeError(f"{type(callback).__name__}.host_state gave no JSON data: {error}"))
        return states

    def fail(self, run: RunView, error: BaseException) -> None:
        """Tells those that have begun that the run ends by an error; what they raise then is only logged."""
        for callback in self._begun:
            self.call(callback, "on_exception", run, error)
        for second in self._errors:
            log.warning("a callback failed after the error: %s: %s", type(second).__name__, second)
        self._errors = []
