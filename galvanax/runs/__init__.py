"""What lasts: the run's folder, its checkpoints and who may write them, its configuration, weights in other formats.

May import the contracts, `devices` and what is more general; never a task, a data module or the loop.
"""
