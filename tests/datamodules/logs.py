"""Small CSV logs."""

import numpy as np


def names_of(nq=2, nv=2, nu=1):
    return ["timestamp", *(f"{kind}_{i}" for kind, n in (("qpos", nq), ("qvel", nv), ("ctrl", nu)) for i in range(n))]


def values_of(rows=6, width=6, seed=0, dt=0.02):
    values = np.random.default_rng(seed).normal(size=(rows, width)).round(6)
    values[:, 0] = np.round(np.arange(rows) * dt, 9)
    return values


def text_of(values, names=None, end="\n"):
    names = names or names_of()
    return end.join([",".join(names), *(",".join(repr(float(x)) for x in row) for row in values)]) + end


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
