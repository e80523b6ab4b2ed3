"""System identification: a simulator's parameters from logs. May import datamodules, physics and what is below them."""
