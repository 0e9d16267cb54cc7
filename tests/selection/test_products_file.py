from pathlib import Path

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products


def arrays(**changes):
    rng = np.random.default_rng(0)
    stored = {
        "dot": rng.normal(size=(3, 2, 4)),
        "query_sq": rng.uniform(1, 2, (3, 4)),
        "train_sq": rng.uniform(1, 2, (3, 2, 4)),
        "target": np.array([0, 1, 0]),
        "component": np.array(
            [
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.11.mlp.down_proj.weight",
                "something.of.its.own",
            ]
        ),
        "size": np.array([40, 10, 20, 30]),
        "query": np.array(["a", "b", "c"]),
    }
    return stored | changes


def write(folder: Path, **changes) -> Path:
    path = folder / "products.npz"
    np.savez(path, **{name: value for name, value in arrays(**changes).items() if value is not None})
    return path


def test_labels_of_a_good_file(tmp_path):
    dataset = read_products(write(tmp_path))
    assert dataset["component"].values.tolist() == [
        "embed",
        "layers.0.attn.q",
        "layers.11.mlp.down",
        "something.of.its.own",
    ]
    assert dataset["train"].values.tolist() == [["a", "a#2"], ["b#1", "b"], ["c", "c#2"]]
    assert dataset["truth"].values.tolist() == [[True, False], [False, True], [True, False]]
    assert dataset["bm25"].values.tolist() == [[0, -1]] * 3
    assert set(dataset["query_set"].values) == {"queries"}
    np.testing.assert_array_equal(dataset["influence"].values, arrays()["dot"])
    stored = arrays()
    norms = np.sqrt(stored["query_sq"].sum(-1))[:, None] * np.sqrt(stored["train_sq"].sum(-1))
    np.testing.assert_allclose(influence.scores(dataset).values, stored["dot"].sum(-1) / norms, rtol=1e-10)


def test_survives_the_store(tmp_path):
    dataset = read_products(write(tmp_path))
    influence.save(dataset, tmp_path / "store.zarr")
    assert influence.load(tmp_path / "store.zarr").identical(dataset)


def test_components_that_share_a_canonical_name_keep_their_own(tmp_path):
    norms = ["model.layers.0.input_layernorm.weight", "model.norm.weight"]
    names = np.array([*norms, "model.embed_tokens.weight", "x"])
    assert read_products(write(tmp_path, component=names))["component"].values.tolist() == [
        *norms,
        "embed",
        "x",
    ]


def spoilt(name, index, value):
    array = arrays()[name].astype(float)
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_sq": None}, "array 'train_sq' is missing"),
        ({"target": None, "targets": np.zeros(3, int)}, r"'target' is missing \(is it 'targets'\?\)"),
        ({"dot": np.ones((3, 4))}, r"'dot' has shape \(3, 4\)"),
        ({"dot": np.ones((0, 2, 4))}, r"'dot' has shape \(0, 2, 4\)"),
        (
            {"query_sq": np.ones((3, 5))},
            r"'query_sq' has shape \(3, 5\), but 'dot' \(3, 2, 4\) asks for \(3, 4\)",
        ),
        ({"size": np.ones(3, int)}, "array 'size' has shape"),
        (
            spoilt("query_sq", (1, 2), -1e-3),
            "'query_sq' has a negative self-product at query 'b', component 'model.l",
        ),
        (
            spoilt("train_sq", (2, 1, 0), -1),
            "negative self-product at query 'c', candidate 1, component 'model.embed",
        ),
        (
            spoilt("dot", (0, 1, 3), np.nan),
            "'dot' has a NaN or Inf at query 'a', candidate 1, component 'something",
        ),
        (spoilt("train_sq", (0, 0, 0), np.inf), "'train_sq' has a NaN or Inf"),
        ({"target": np.array([0, 2, 0])}, "'target' names column 2 for query 'b'"),
        ({"target": np.array([0, -2, 0])}, "'target' names column -2 for query 'b'"),
        ({"target": np.array([0, 0.5, 0])}, "'target' names column 0.5 for query 'b'"),
        ({"size": np.array([1, 2, 0, 3])}, "'size' has a component without parameters"),
        ({"query": np.array(["a", "b", "a"])}, "'query' repeats 'a'"),
        ({"component": np.array(["x", "y", "x", "z"])}, "'component' repeats 'x'"),
        ({"dot": np.full((3, 2, 4), "x")}, "'dot' holds <U1"),
        ({"query": np.array(["a", None, "c"], dtype=object)}, "not a readable .npz file of plain arrays"),
    ],
)
def test_bad_files_name_file_and_array(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        read_products(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_file_that_is_no_npz(tmp_path, content):
    path = tmp_path / "products.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        read_products(path)


def test_a_truncated_npz(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        read_products(path)


def test_a_bare_array_in_place_of_an_npz(tmp_path):
    path = tmp_path / "products.npz"
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(UserError, match=r"not a readable \.npz"):
        read_products(path)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_products(tmp_path / "none.npz")
