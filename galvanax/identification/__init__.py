"""System identification: a simulator's parameters from logs.

May import datamodules, physics, the patterns of callbacks, and what is below them.
"""
