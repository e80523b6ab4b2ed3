"""Metrics for Weights & Biases."""

import dataclasses
import importlib
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from galvanax.callbacks.callback import Callback
from galvanax.callbacks.run_view import RunView
from galvanax.errors import ConfigError
from galvanax.files import describe_os_error
from galvanax.trainer.result import FitResult

log = logging.getLogger("galvanax")


@dataclasses.dataclass
class WandBLogger(Callback):
    """Logs all metrics and the run's settings to Weights & Biases; needs `pip install "galvanax[wandb]"`.

    A resumed run continues its W&B run. Where it starts behind the last row that W&B has, W&B leaves the rows between
    out, which are the same. A W&B run that is already active (a sweep's, by `wandb.init`) is used and left open.
    Where W&B fails later, on a full disk for example, a warning says so, and the run goes on.

    Attributes:
      project: where W&B puts the run.
      name: of the run; None: its folder's.
      mode: "online", "offline" (files in `run_dir/wandb` for `wandb sync`), "disabled" (nothing; needs no package), or
        None: what the environment says (`WANDB_MODE`), online by default.
      entity: the W&B user or team; None: the default one of the account.
      group: of runs that belong together, such as the seeds of an experiment.
      tags: of the run.
    """

    writes_files: ClassVar[bool] = True
    main_process_only: ClassVar[bool] = True

    project: str = "galvanax"
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline", "disabled", None):
            raise ConfigError(f'WandBLogger.mode={self.mode!r}: expected "online", "offline", "disabled" or None.')

    def on_fit_start(self, run: RunView) -> None:
        """Starts the W&B run.

        Raises:
          ConfigError: the package is missing, or W&B refuses (not logged in, for example).
        """
        self._run, self._id = run, None
        self._session: Any = None
        self._warned = self._given_up = False
        if self.mode != "disabled":
            self._wandb = _import_wandb()
            if not run.resumed:
                self._start()

    def on_train_log(self, run: RunView, step: int, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._log(step, metrics)

    def on_validation_end(self, run: RunView, metrics: dict[str, float]) -> None:
        """See `Callback`."""
        self._log(run.step, metrics)

    def on_fit_end(self, run: RunView, result: FitResult) -> None:
        """See `Callback`."""
        self._finish(0)

    def on_exception(self, run: RunView, error: BaseException) -> None:
        """See `Callback`."""
        self._finish(getattr(error, "code", None) or 1)

    def host_state(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"id": self._id}

    def restore_host_state(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self._id = state["id"]
        if self.mode != "disabled":
            self._start()

    def _start(self) -> None:
        assert self._run.run_dir is not None
        self._owned = self._wandb.run is None
        try:
            self._session = self._wandb.run or self._wandb.init(
                project=self.project,
                name=self.name or self._run.run_dir.name,
                mode=self.mode,
                entity=self.entity,
                group=self.group,
                tags=self.tags,
                dir=str(self._run.run_dir.absolute()),
                id=self._id,
                resume="allow",
            )
        except self._wandb.Error as error:
            raise ConfigError(f'WandBLogger(mode={self.mode!r}): {error} Or log with mode="offline".') from error
        except OSError as error:
            self._given_up = True
            self._warn(error)
            return
        self._id = self._session.id
        self._try(lambda: self._session.config.update(self._run.config, allow_val_change=True))

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        if self.mode == "disabled":
            return
        if self._session is None and not self._given_up:  # resumed from a checkpoint of a run that had no such logger
            self._start()
        if self._session is not None:
            per_epoch = self._run.steps_per_epoch
            row = {**metrics, **({"epoch": step / per_epoch} if per_epoch else {})}
            self._try(lambda: self._session.log(row, step=step))

    def _finish(self, exit_code: int) -> None:
        if self._session is not None and self._owned:
            self._try(lambda: self._session.finish(exit_code=exit_code))
        self._session = None

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # its errors have no class in common
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            assert self._run.run_dir is not None
            folder = self._run.run_dir / "wandb"
            reason = (
                describe_os_error(error, folder) if isinstance(error, OSError) else str(error) or type(error).__name__
            )
            log.warning("W&B fails (%s): %s. The run goes on; W&B may lack rows.", folder, reason)
        self._warned = True


def _import_wandb() -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        wandb = None
    if not hasattr(wandb, "init"):  # W&B leaves folders named wandb, and Python imports any folder
        raise ConfigError(
            'WandBLogger needs the package wandb: pip install "galvanax[wandb]". Or choose mode="disabled".'
        )
    return wandb
