"""Classification data: exact counts, targets and files."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from tdaexp.data.cifar2 import Cifar2
from tdaexp.data.digits import Digits
from tdaexp.data.mnist import Mnist, read_idx
from tdaexp.data.modular_addition import ModularAddition
from tdaexp.runtime.errors import UserError


def test_modular_addition_is_the_paper_s():
    corpus = ModularAddition().load()
    assert (len(corpus.train), len(corpus.test), corpus.classes) == (4000, 2000, 115)
    pairs = set()
    for examples in (corpus.train, corpus.test):
        assert examples.inputs.dtype == examples.targets.dtype == torch.int64
        for tokens, target in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
            a, plus, b, equals = tokens
            assert 0 <= b <= a <= 112 and (plus, equals) == (113, 114) and target == (a + b) % 113
            pairs.add((a, b))
    assert len(pairs) == 6000 and any(a == b for a, b in pairs)
    assert corpus.train.ids[0] == f"{corpus.train.meta['a'][0]}+{corpus.train.meta['b'][0]}"
    assert (corpus.test.meta["residue"] == corpus.test.meta["sum"] % 113).all()


@pytest.mark.parametrize(("equal", "pool"), [(True, 6441), (False, 6328)])
def test_modular_addition_s_pool(equal, pool):
    corpus = ModularAddition(train=pool - 1, test=1, equal=equal).load()
    pairs = {tuple(row) for part in (corpus.train, corpus.test) for row in part.inputs[:, [0, 2]].tolist()}
    assert pairs == {(a, b) for a in range(113) for b in range(a + equal)}
    with pytest.raises(UserError, match=rf"dataset\.train={pool} and dataset\.test=1: the data has {pool} examples"):
        ModularAddition(train=pool, test=1, equal=equal).load()


@pytest.mark.parametrize("equal", [True, False])
def test_the_authors_draw_is_their_program_s(equal):
    """Their steps by hand, in numpy's older functions: no third part, then the test pairs, then the training pairs."""
    older = np.random.RandomState(3)
    pairs = [(b, a) for a in range(113) for b in range(a + (not equal), 113)]
    every = set(range(len(pairs)))
    none = older.choice(len(pairs), 0, replace=False)
    test = older.choice(sorted(every - set(none)), 2000, replace=False)
    train = older.choice(sorted(every - set(test)), 4000, replace=False)
    corpus = ModularAddition(seed=3, draw="explaind", equal=equal).load()
    for examples, rows in ((corpus.train, train), (corpus.test, test)):
        assert examples.ids == [f"{pairs[row][0]}+{pairs[row][1]}" for row in rows]
    with pytest.raises(UserError, match=r"dataset\.draw: unknown value 'explainde'; did you mean 'explaind'"):
        ModularAddition(draw="explainde")


def test_the_draw_follows_the_seed_alone():
    one, two, other = (ModularAddition(seed=seed).load() for seed in (0, 0, 1))
    assert one.train.fingerprint() == two.train.fingerprint() != other.train.fingerprint()
    chosen = one.train.select([5, 2])
    assert chosen.ids == [one.train.ids[5], one.train.ids[2]] and chosen.meta["a"][0] == one.train.meta["a"][5]
    assert torch.equal(chosen.inputs[1], one.train.inputs[2]) and chosen.targets[1] == one.train.targets[2]


def test_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    corpus, found = Digits().load(), load_digits()
    assert len(corpus.train) == 1280 and len(corpus.test) == 512 and corpus.classes == 10
    assert corpus.train.inputs.shape == (1280, 1, 8, 8) and corpus.train.inputs.max() == 1
    row = int(corpus.test.ids[7].removeprefix("digit-"))
    np.testing.assert_array_equal(corpus.test.inputs[7, 0].numpy() * 16, found.images[row])
    assert corpus.test.targets[7] == found.target[row]


def idx(folder, prefix, count, packed=False):
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for kind, values in (("images", images), ("labels", labels)):
        magic = {"images": 2051, "labels": 2049}[kind]
        raw = struct.pack(f">i{values.ndim}i", magic, *values.shape) + values.tobytes()
        name = f"{prefix}-{kind}-idx{values.ndim}-ubyte"
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(raw) if packed else raw)
    return images, labels


def test_mnist_from_one_pair_of_files_or_from_both(tmp_path):
    test_images, _ = idx(tmp_path, "t10k", 20, packed=True)
    one = Mnist(path=str(tmp_path), train=12, test=8).load()
    assert {*one.train.ids, *one.test.ids} == {f"test-{row}" for row in range(20)}
    images, labels = idx(tmp_path, "train", 30)
    both = Mnist(path=str(tmp_path), train=30, test=15).load()
    assert all(name.startswith("train-") for name in both.train.ids)
    assert all(name.startswith("test-") for name in both.test.ids)
    row = int(both.train.ids[3].removeprefix("train-"))
    np.testing.assert_allclose(both.train.inputs[3, 0], (images[row] / 255 - 0.1307) / 0.3081, rtol=1e-4, atol=1e-5)
    assert both.train.targets[3] == labels[row]
    row = int(both.test.ids[2].removeprefix("test-"))
    np.testing.assert_allclose(both.test.inputs[2, 0], (test_images[row] / 255 - 0.1307) / 0.3081, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"dataset\.train=31: there are 30 images"):
        Mnist(path=str(tmp_path), train=31, test=5).load()


def test_the_real_mnist_images(shared_data):
    corpus = Mnist(path=str(shared_data / "mnist")).load()
    assert corpus.train.inputs.shape == (5120, 1, 28, 28) and corpus.test.inputs.shape == (1024, 1, 28, 28)
    first = read_idx(shared_data / "mnist" / "t10k-labels-idx1-ubyte.gz", "labels")
    assert list(first[:10]) == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # the well-known beginning of the test set


def test_bad_mnist_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no MNIST there; it needs t10k-images-idx3-ubyte"):
        Mnist(path=str(tmp_path)).load()
    idx(tmp_path, "t10k", 20)
    file = tmp_path / "t10k-images-idx3-ubyte"
    whole = file.read_bytes()
    for raw, message in (
        (whole[:-1], "cut short, 15679 of 15680 bytes"),
        (whole[:7], "not an IDX file of images"),
        (b"\0" * 100, "not an IDX file of images"),
    ):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=message):
            Mnist(path=str(tmp_path)).load()
    packed = gzip.compress(whole)
    file.unlink()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(packed[:-20])
    with pytest.raises(UserError, match="not readable"):
        Mnist(path=str(tmp_path)).load()


def cifar(folder, **counts):
    generator = np.random.default_rng(0)
    for part, count in counts.items():
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(count) % 10)


def test_cifar2_takes_cats_and_dogs_and_scales_the_channels(tmp_path):
    cifar(tmp_path, train=100, test=50)
    corpus = Cifar2(path=str(tmp_path), train=20, test=10).load()
    assert corpus.classes == 2 and corpus.train.inputs.shape == (20, 3, 32, 32)
    assert sorted(corpus.train.targets.tolist()) == [0] * 10 + [1] * 10
    np.testing.assert_allclose(corpus.train.inputs.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(corpus.train.inputs.std((0, 2, 3)), 1, atol=1e-3)
    with np.load(tmp_path / "train.npz") as arrays:
        cats = arrays["images"][arrays["labels"] == 3][:, 0, 0, 1].astype(float)
    mine = corpus.train.inputs[corpus.train.targets == 0][:, 1, 0, 0].numpy()
    assert np.corrcoef(np.sort(cats), np.sort(mine))[0, 1] == pytest.approx(1)


def test_bad_cifar2_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"train\.npz: cannot be read .*images \[N, 32, 32, 3\] uint8"):
        Cifar2(path=str(tmp_path)).load()
    cifar(tmp_path, train=100, test=50)
    with pytest.raises(UserError, match=r"dataset\.train=21: there are 20 cats and dogs"):
        Cifar2(path=str(tmp_path), train=21, test=5).load()
    np.savez(tmp_path / "test.npz", images=np.zeros((3, 3, 32, 32)), labels=np.zeros(3))
    with pytest.raises(UserError, match=r"test\.npz: images \[3, 3, 32, 32\] float64"):
        Cifar2(path=str(tmp_path), train=5, test=5).load()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": 0}, r"dataset\.train=0"),
        ({"query_limit": 0}, r"dataset\.query_limit=0"),
        ({"query_sets": ["tset"]}, r"dataset\.query_sets: unknown query set 'tset'; did you mean 'test'"),
        ({"modulus": 1}, r"dataset\.modulus=1"),
    ],
)
def test_bad_keys_are_one_line(keys, message):
    with pytest.raises(UserError, match=message):
        ModularAddition(**keys)
