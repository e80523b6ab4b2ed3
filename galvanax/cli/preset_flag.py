"""`--preset NAME ...`: settings that belong together, before those that other flags change."""

from galvanax.errors import ConfigError
from galvanax.experiments.experiment import Experiment


def take_presets(experiment: Experiment, flags: list[str]) -> Experiment:
    """The experiment with the presets that flags name, as the values from which the other flags start.

    Raises:
      ConfigError: the experiment has no such preset, or the flag names none.
    """
    names: list[str] = []
    within = False
    for word in flags:
        if word.startswith("-"):
            within = word == "--preset"
            if word.startswith("--preset="):
                names.append(word.partition("=")[2])
        elif within:
            names.append(word)
    if "--preset" in flags and not names:
        raise ConfigError(f"--preset names none. Known: {', '.join(experiment.presets) or 'none'}.")
    return experiment.with_preset(*names)
