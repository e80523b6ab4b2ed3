"""What the model is made of."""

import dataclasses
from typing import ClassVar

from clu import parameter_overview

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.terminal import say


@dataclasses.dataclass
class ModelSummary(Callback):
    """Prints a table of the parameters at the start: path, shape, dtype, count, and their total."""

    main_process_only: ClassVar[bool] = True

    def on_fit_start(self, run: RunView) -> None:
        """See `Callback`."""
        say(parameter_overview.get_parameter_overview(run.state.params, include_stats=False))
