"""What sight is worth: the cart that must stop before an edge, with its camera and without, several seeds each.

    uv run python benchmarks/ppo_sees.py [--seeds 0 1 2] [--iterations 60]

An episode is a success where the cart stands on the platform at its end, no farther from the edge than `Ledge.near`.
"""

import dataclasses
import time

import jax
import numpy as np
import tyro

import galvanax as gx
from galvanax.experiments.ppo import ledge_ppo
from galvanax.tasks.policy_rollout import episode_keys, play_episodes
from galvanax.trainer.compile_cache import enable_compile_cache


@dataclasses.dataclass
class Settings:
    """What is trained.

    Attributes:
      vision: who sees.
      seeds: a run each.
      iterations: of PPO.
      num_episodes: played by each trained policy.
    """

    vision: tuple[str, ...] = ("both", "none")
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int = 60
    num_episodes: int = 512


def main(settings: Settings) -> None:
    """Prints a line for each run."""
    enable_compile_cache()
    experiment = ledge_ppo()
    data = experiment.data
    assert isinstance(data, gx.EnvironmentDataModule)
    env, length = data.eval_env, data.max_episode_length
    print(f"{'vision':8} {'seed':>4} {'success':>8} {'fell':>6} {'short of the edge, m':>21} {'return':>7} {'s':>5}")
    for vision in settings.vision:
        for seed in settings.seeds:
            start = time.perf_counter()
            task = dataclasses.replace(experiment.task, vision=vision)
            trainer = gx.Trainer(max_steps=settings.iterations, seed=seed, callbacks=[gx.GradientClipping(1.0)])
            model = trainer.fit(task, data).model
            seconds = time.perf_counter() - start
            keys = episode_keys(seed, np.arange(settings.num_episodes))
            episodes = jax.device_get(play_episodes(model, env, keys, length))
            last = episodes.qpos[np.arange(settings.num_episodes), episodes.length - 1]
            gap = (last[:, 1] - last[:, 0])[~episodes.fell]
            success = np.sum(gap <= env.near) / settings.num_episodes
            total = episodes.reward.sum(axis=1).mean()
            print(
                f"{vision:8} {seed:4} {success:8.3f} {episodes.fell.mean():6.3f} {np.mean(gap):21.3f} {total:7.1f} "
                f"{seconds:5.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
