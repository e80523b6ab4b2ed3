"""What `identify` found."""

import dataclasses
import json
from pathlib import Path

import mujoco
import numpy as np

from galvanax.files import partial_file
from galvanax.physics.system import MJXSystem


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
    """Estimated parameters, how sure they are, and the model that has them.

    Attributes:
      values: by name, in MuJoCo's units (`action_delay` in seconds).
      standard_errors: of the values, from the Gauss-Newton Hessian; infinite for those in `undetermined`. They hold for
        noise that is independent from row to row and a model that is right but for its parameters.
      initial: the values before.
      undetermined: names of the parameters that the logs don't tell, alone or apart from each other. Their values mean
        nothing by themselves.
      correlation: of the estimates, `(parameters, parameters)`, in the order of `values`; NaN for undetermined ones.
      error_before: root mean square of the prediction errors over the windows, in units of the noise, with the initial
        values and the first states that suit them best.
      error_after: with the estimated ones. Near 1 where the noise is estimated from what is left.
      noise: deviation of each entry of a state's difference `(2 nv,)`, by which residuals were weighed.
      windows: how many were simulated.
      horizon: control steps of a window.
      iterations: of Levenberg-Marquardt, altogether.
      converged: whether they ended by themselves.
      seconds: wall time (s), compilation included.
      model: the MuJoCo model with the values, a copy.
      system: the system with them, without the delay.
    """

    values: dict[str, float]
    standard_errors: dict[str, float]
    initial: dict[str, float]
    undetermined: tuple[str, ...]
    correlation: np.ndarray
    error_before: float
    error_after: float
    noise: np.ndarray
    windows: int
    horizon: int
    iterations: int
    converged: bool
    seconds: float
    model: mujoco.MjModel
    system: MJXSystem

    def save(self, path: str | Path) -> None:
        """Writes everything but model and system as JSON; `gx.set_parameters(model, values)` takes its `values`.

        Infinite and undefined numbers are null.
        """
        fields = (field.name for field in dataclasses.fields(self) if field.name not in ("model", "system"))
        text = json.dumps({name: _plain(getattr(self, name)) for name in fields}, indent=2)
        with partial_file(path) as partial:
            partial.write_text(text + "\n")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value
