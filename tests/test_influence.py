import shutil

import numpy as np
import pytest
import xarray as xr

from tdaexp import influence
from tdaexp.runtime.errors import UserError


@pytest.fixture
def gradients():
    """Per-example gradients in three components of sizes 2, 3 and 4: queries [2], train [3]."""
    rng = np.random.default_rng(0)
    sizes = [2, 3, 4]
    return sizes, [rng.normal(size=(2, s)) for s in sizes], [rng.normal(size=(3, s)) for s in sizes]


@pytest.fixture
def dataset(gradients):
    sizes, query, train = gradients
    pairs = np.array([[0, 1, 2], [2, 1, -1]])
    dot = np.stack([np.einsum("qd,qcd->qc", q, t[pairs]) for q, t in zip(query, train, strict=True)], -1)
    dot[pairs < 0] = np.nan
    return influence.build(
        dot,
        query=["q0", "q1"],
        query_set=["paraphrased", "generated"],
        train=np.array(["t0", "t1", "t2", ""], dtype=object)[pairs],
        truth=np.array([[1, 0, 0], [1, 0, 0]], bool),
        component=["a", "b", "c"],
        size=np.array(sizes),
        query_sq=np.stack([(q**2).sum(1) for q in query], -1),
        train_sq=np.stack([(t**2).sum(1)[pairs] for t in train], -1),
        attrs={"method": "full"},
    )


def cosine(a, b):
    return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


@pytest.mark.parametrize("chosen", [[0], [1, 2], [0, 1, 2]])
def test_a_subset_has_the_cosine_of_the_concatenated_gradients(gradients, dataset, chosen):
    _, query, train = gradients
    weight = xr.DataArray(np.isin(np.arange(3), chosen).astype(float), dims="component")
    found = influence.cosine(dataset, weight).values
    q = np.concatenate([query[k] for k in chosen], 1)
    t = np.concatenate([train[k] for k in chosen], 1)
    assert found[0] == pytest.approx([cosine(q[0], t[j]) for j in range(3)], rel=1e-9)
    assert found[1, :2] == pytest.approx([cosine(q[1], t[2]), cosine(q[1], t[1])], rel=1e-9)
    assert np.isnan(found[1, 2])


def test_each_query_set_is_scored_with_its_own_subset(dataset):
    weights = np.array([[1.0, 0, 0], [0, 1, 1]])
    names = np.array(["paraphrased", "generated"], dtype=object)
    dataset["weight"] = xr.DataArray(weights, dims=("query_set_name", "component"), coords={"query_set_name": names})
    for row, weight in enumerate(weights):
        alone = influence.cosine(dataset, xr.DataArray(weight, dims="component"))
        np.testing.assert_array_equal(influence.scores(dataset).values[row], alone.values[row])


def test_without_norms_the_answer_is_the_sum_over_components(dataset):
    plain = dataset.drop_vars(["query_sq", "train_sq"]).assign_attrs(normalise="none")
    np.testing.assert_allclose(influence.scores(plain), dataset["influence"].values.sum(-1), rtol=1e-12, equal_nan=True)


def test_dense_puts_nan_where_a_pair_was_not_computed(dataset):
    dense, values = influence.dense(dataset), influence.scores(dataset).values
    assert list(dense["train"].values) == ["t0", "t1", "t2"]
    assert dense.sel(query="q1", train="t2").item() == values[1, 0]
    assert np.isnan(dense.sel(query="q1", train="t0").item())


def test_a_store_reads_back_identical(dataset, tmp_path):
    influence.save(dataset, tmp_path / "influence.zarr")
    assert influence.load(tmp_path / "influence.zarr").identical(dataset)


def test_a_path_may_be_a_text(dataset, tmp_path):
    influence.save(dataset, str(tmp_path / "a.zarr"))
    xr.testing.assert_identical(
        influence.load(str(tmp_path / "a.zarr")).load(), influence.load(tmp_path / "a.zarr").load()
    )


def test_saving_twice_gives_the_same_bytes(dataset, tmp_path):
    for name in ("one", "two"):
        influence.save(dataset, tmp_path / name)
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert files[0] == files[1]
    for file in files[0]:
        if (tmp_path / "one" / file).is_file():
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_missing_damaged_and_older_stores_are_named(dataset, tmp_path):
    with pytest.raises(UserError, match=r"no such influence store"):
        influence.load(tmp_path / "nothing.zarr")
    influence.save(dataset, tmp_path / "damaged.zarr")
    shutil.rmtree(tmp_path / "damaged.zarr" / "influence")
    with pytest.raises(UserError, match=r"damaged.zarr: not a readable influence store"):
        influence.load(tmp_path / "damaged.zarr")
    influence.save(dataset.assign_attrs(format_version=0), tmp_path / "older.zarr")
    with pytest.raises(UserError, match=r"older.zarr: written in format 0, this version reads 3"):
        influence.load(tmp_path / "older.zarr")


def test_top_is_best_first_and_marks_what_is_missing():
    scores = np.array([[1.0, 3.0, 3.0, np.nan], [np.nan, np.nan, np.nan, 0.0]])
    assert influence.top(scores, 3).tolist() == [[1, 2, 0], [3, -1, -1]]
    assert influence.top(scores, 9).shape == (2, 4)


def test_a_store_is_intact_until_any_of_its_files_changes(dataset, tmp_path):
    path = tmp_path / "influence.zarr"
    assert not influence.intact(path)
    influence.save(dataset, path)
    assert influence.intact(path)
    for file in [one for one in path.rglob("*") if one.is_file()]:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not influence.intact(path), file
        with pytest.raises(UserError, match=r"influence.zarr: not a readable influence store"):
            influence.load(path)
        file.write_bytes(whole)
    assert influence.load(path).identical(dataset)


@pytest.mark.parametrize("harm", ["written anew", "deleted"])
def test_a_store_that_changes_while_it_is_read_gives_no_mixture(harm, dataset, tmp_path):
    path = tmp_path / "influence.zarr"
    influence.save(dataset, path)
    opened = influence.load(path)
    shutil.rmtree(path)
    if harm == "written anew":
        influence.save(dataset.assign(influence=dataset["influence"] * 2), path)
    for name in ("influence", "train", "truth"):
        with pytest.raises(UserError, match=r"influence.zarr: was written anew or deleted while it was read"):
            opened[name].values  # noqa: B018
