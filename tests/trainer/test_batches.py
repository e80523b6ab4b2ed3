"""Every batch keeps its values, or is refused by name."""

import dataclasses

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import LineTask, line_data

import galvanax as gx
from galvanax.trainer.batch import write


@dataclasses.dataclass(frozen=True)
class MeanTask(gx.Task):
    """Says what it sees of "x": the mean in training and validation, the values themselves in prediction."""

    def build_model(self, rngs):
        return nnx.Linear(1, 1, use_bias=False, rngs=rngs)

    def build_optimizer(self, num_steps):
        return optax.sgd(0.0)

    def loss(self, model, batch, rng):
        return jnp.sum(model.kernel[...]) * 0, {"mean": batch["x"].astype(jnp.float32).mean(-1)}

    def predict(self, model, batch, rng):
        return batch["x"]


@dataclasses.dataclass
class Batches(gx.DataModule):
    """These batches, in every split or in one."""

    train: tuple
    val: tuple | None = None
    stream: bool = False

    def train_dataset(self, seed):
        return self._dataset(self.train)

    def val_dataset(self):
        return None if self.val is None else self._dataset(self.val)

    test_dataset = val_dataset

    def _dataset(self, arrays):
        dataset = grain.MapDataset.source([{"x": array} for array in arrays])
        return dataset.to_iter_dataset() if self.stream else dataset


class Means(gx.Callback):
    def __init__(self):
        self.seen = []

    def on_train_metrics(self, run, steps, metrics):
        self.seen.extend(metrics["train/mean"].tolist())


ONES = np.ones((2, 1), np.float32)
MODEL = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))


def seen(*arrays, stream=False):
    """What training, validation and prediction see of batches: means of each, of all, and the values."""
    means, data = Means(), Batches(arrays, arrays, stream)
    result = gx.Trainer(max_steps=len(arrays), val_every=gx.Steps(2), callbacks=[means]).fit(MeanTask(), data)
    return means.seen, result.metrics["val/mean"], gx.Trainer().predict(MeanTask(), data, model=MODEL)


@pytest.mark.behaviour("peers 162", "reports 8")
@pytest.mark.parametrize(
    ("first", "later"),
    [
        (np.float32, np.int64),  # whole numbers, where the others have fractions
        (np.float32, np.uint8),
        (np.float64, np.float32),
        (np.float32, np.float64),
        (np.int64, np.int32),
        (np.int32, np.uint64),
        (np.int32, bool),
        (np.float32, ">f8"),
        (">i4", np.int64),
        (">f4", ">f4"),
    ],
)
def test_values_that_the_first_dtype_holds(first, later):
    one, two = np.array([[5], [2]]).astype(first), np.array([[1], [0]]).astype(later)
    means, mean, values = seen(one, two, stream=later is np.int64)
    assert means == [3.5, 0.5]
    assert mean == 2.0
    np.testing.assert_array_equal(values, [[5], [2], [1], [0]])


LARGE = 2**31 - 1  # the greatest number of int32


@pytest.mark.behaviour("peers 162", "peers 163", "reports 8")
@pytest.mark.parametrize(
    ("first", "later", "words"),
    [
        (np.array([[1], [2]]), np.array([[0.9], [2.7]]), ["dtype float64", "held as int32", ".astype("]),
        (ONES, ONES * 1j, ["dtype complex64", "held as float32"]),
        (ONES.astype(jnp.bfloat16), ONES, ["dtype float32", "held as bfloat16"]),
        (ONES > 0, ONES.astype(int), ["dtype int64", "held as bool"]),
        (ONES.astype(np.uint8), np.array([[300], [1]]), ["300", "uint8", "0 to 255", ".astype("]),
        (ONES.astype(np.uint8), np.array([[-1], [1]]), ["-1", "uint8", "0 to 255"]),
        (ONES.astype(int), np.array([[LARGE + 1], [0]]), [str(LARGE + 1), "int64", "int32", "jax_enable_x64"]),
        (ONES.astype(int), np.array([[0], [-LARGE - 2]]), [str(-LARGE - 2), "Subtract an offset"]),
        (ONES, np.array([[2**24 + 1], [0]]), ["16777217", "float32 holds exactly", "-16777216 to 16777216"]),
        (ONES.astype(float), np.array([[1e300], [np.inf]]), ["1e+300", "beyond float32's range", "Rescale it"]),
        (ONES, np.array([["a"], ["b"]]), ["dtype <U1", "held as float32"]),
    ],
)
def test_values_that_it_does_not_hold(first, later, words):
    """At the start where the last batch shows it; else when the batch comes, wherever it comes."""
    stream = later.dtype == np.complex64
    places = {
        "Training batch 1 (the last of an epoch)": (first, later),
        "A training batch": (first, later, first),
        "Validation batch 1": (first, later),
    }
    for name, batches in places.items():
        data = Batches((first, first), batches) if "Valid" in name else Batches(batches)
        data.stream = stream
        with pytest.raises(gx.DataError) as caught:
            gx.Trainer(max_steps=2, val_every=gx.Steps(2)).fit(MeanTask(), data)
        expected = "A training batch" if stream and "Training" in name else name
        for word in (f"{expected}['x'] h", *words):
            assert word in str(caught.value)
    for split in ("validate", "test", "predict"):
        run, name = getattr(gx.Trainer(), split), {"validate": "Validation"}.get(split, split.capitalize())
        with pytest.raises(gx.DataError, match=rf"{name} batch 1\['x'\] h"):
            run(MeanTask(), Batches((first,), (first, later, first), stream), model=MODEL)


@pytest.mark.behaviour("peers 163", "reports 8")
def test_integers_at_the_edge_and_beyond():
    edge = np.array([[LARGE], [-LARGE - 1]])
    np.testing.assert_array_equal(seen(edge)[2], edge)
    with pytest.raises(gx.DataError, match=rf"first training batch\['x'\] holds {LARGE + 1} \(int64\), beyond.*int32"):
        seen(edge + 1)
    with pytest.raises(gx.DataError, match=r"holds 4294967296 \(uint64\), beyond.*uint32"):
        seen(np.array([[2**32], [0]], np.uint64))
    rows = {"x": np.ones((8, 1), np.float32), "id": {"of": np.arange(8)}}
    late = {**rows, "id": {"of": np.array([0] * 7 + [1_700_000_000_000_000_000])}}
    with pytest.raises(gx.DataError, match=r"ArrayDataModule.val\['id'\]\['of'\] holds 1700000000000000000 \(int64\)"):
        gx.Trainer(max_steps=1).fit(MeanTask(), gx.ArrayDataModule(rows, late, batch_size=4))


def test_float64_is_rounded():
    value = np.array([[1 / 3], [1e-60]])
    np.testing.assert_array_equal(seen(value)[2], value.astype(np.float32))


def test_what_64_bits_hold_with_x64():
    stamps = np.array([[1_700_000_000_000_000_000], [2**40 + 7]])
    with jax.enable_x64(True):
        data = Batches((stamps,), (stamps,))
        np.testing.assert_array_equal(gx.Trainer().predict(MeanTask(), data, model=MODEL), stamps)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[1], [None]], object), "dtype object; expected numbers"),
        (np.array([["2024-01-01"]] * 2, np.datetime64), "dtype datetime64.*expected numbers"),
        (np.ones((2, 1), np.longdouble), "dtype float128; expected numbers of at most 64 bits"),
        (np.ma.masked_array(ONES, [[True], [False]]), "masked entries.*filled"),
    ],
)
def test_what_is_no_number(array, words):
    with pytest.raises(gx.DataError, match=rf"The first training batch\['x'\] has {words}"):
        seen(array)
    with pytest.raises(gx.DataError, match=rf"ArrayDataModule.train\['x'\] has {words}"):
        gx.Trainer(max_steps=1).fit(MeanTask(), gx.ArrayDataModule({"x": array}, batch_size=1))


def test_a_mask_that_hides_nothing():
    means, *_ = seen(np.ma.masked_array(ONES, mask=False))
    assert means == [1.0]


@pytest.mark.behaviour("peers 155")
def test_the_last_training_batch_is_looked_at_before_training():
    short, wide = ONES[:1], np.ones((2, 3), np.float32)
    steps = Means()

    def fit(*batches, **settings):
        return gx.Trainer(**{"max_epochs": 1, "callbacks": [steps], **settings}).fit(MeanTask(), Batches(batches))

    with pytest.raises(gx.DataError, match=r"Training batch 2 .the last.*\['x'\] has shape \[1, 1\].*\[2, 1\].*drop_"):
        fit(ONES, ONES, short)
    with pytest.raises(gx.DataError, match=r"Training batch 1 .*\['x'\] has rows of shape \[3\]; the first .* \[1\]"):
        fit(ONES, wide)
    with pytest.raises(gx.DataError, match=r"Training batch 1 .* has the structure"):
        fit(ONES, (ONES, ONES))
    assert not steps.seen
    assert fit(ONES, ONES, short, limit_train_batches=2).metrics["train/mean"] == 1
    with pytest.raises(gx.DataError, match=r"A training batch\['x'\] has shape \[1, 1\]"):
        fit(ONES, short, ONES)


@pytest.mark.behaviour("peers 155")
def test_evaluation_batches_are_called_by_their_split():
    wide = np.ones((2, 3), np.float32)
    splits = {"validate": "Validation", "test": "Test", "predict": "Predict"}
    for method, name in splits.items():

        def run(*batches, method=method):
            return getattr(gx.Trainer(), method)(MeanTask(), Batches((ONES,), batches), model=MODEL)

        with pytest.raises(gx.DataError, match=rf"^{name} batch 1\['x'\] has rows of shape \[3\]; the first .* \[1\]"):
            run(ONES, wide)
        with pytest.raises(gx.DataError, match=rf"^{name} batch 1 has 3 rows, more than the first: 2"):
            run(ONES, np.ones((3, 1), np.float32), ONES)
        with pytest.raises(gx.DataError, match=rf"^The first {name.lower()} batch\['x'\] is a scalar"):
            run(np.float32(1))
        with pytest.raises(gx.DataError, match=r"^(val|test|predict)_dataset holds no batch"):
            run()
    # Before training, where the last one shows it.
    steps = Means()
    with pytest.raises(gx.DataError, match="Validation batch 2"):
        gx.Trainer(max_steps=1, callbacks=[steps]).fit(MeanTask(), Batches((ONES,), (ONES, ONES, wide)))
    assert not steps.seen


def test_an_endless_dataset_has_no_last_batch():
    @dataclasses.dataclass
    class Endless(Batches):
        def _dataset(self, arrays):
            return super()._dataset(arrays).repeat()

    means = Means()
    gx.Trainer(max_steps=5, callbacks=[means]).fit(MeanTask(), Endless((ONES, 2 * ONES)))
    assert means.seen == [1, 2, 1, 2, 1]
    with pytest.raises(gx.ConfigError, match=r"max_epochs.*a stream with no length"):
        gx.Trainer(max_epochs=1).fit(MeanTask(), Endless((ONES,)))
    with pytest.raises(gx.DataError, match=r"Training batch 3 .*shape \[1, 1\]"):
        gx.Trainer(max_steps=1, limit_train_batches=4).fit(MeanTask(), Endless((ONES, ONES[:1])))


def test_alike_batches_are_not_looked_at_again(monkeypatch):
    """What a batch costs: one comparison of dtypes a leaf."""
    looked = []
    monkeypatch.setattr("galvanax.trainer.feed.write", lambda *arguments: (looked.append(1), write(*arguments)))
    gx.Trainer(max_steps=8).fit(LineTask(), line_data())
    assert not looked
    seen(ONES.astype(float))
    assert looked


@pytest.mark.behaviour("peers 89")
@pytest.mark.parametrize("stream", [False, True])
def test_a_run_goes_on_with_the_next_batch(tmp_path, stream):
    means = Means()

    @dataclasses.dataclass
    class Numbered(Batches):
        def _dataset(self, arrays):
            dataset = grain.MapDataset.source([{"x": array} for array in arrays]).repeat()
            return dataset.to_iter_dataset() if self.stream else dataset

    for steps, resume in ((4, None), (7, "last")):
        data = Numbered(tuple(ONES * number for number in range(5)), stream=stream)
        trainer = gx.Trainer(max_steps=steps, run_dir=tmp_path, callbacks=[means])
        trainer.fit(MeanTask(), data, resume=resume)
    assert means.seen == [0, 1, 2, 3, 4, 0, 1]
