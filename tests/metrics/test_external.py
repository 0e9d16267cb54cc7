import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tdaexp import influence
from tdaexp.metrics.external import read_scores
from tdaexp.runtime.errors import UserError


@pytest.fixture
def reference(products_dataset):
    """Four queries, one of them with two candidates only; training ids overlap."""
    train = np.array([["a", "b", "c"], ["b", "c", "a"], ["d", "a", ""], ["c", "d", "b"]], dtype=object)
    values = np.where(train == "", np.nan, 0.0)
    truth = np.array([[True, False, False]] * 4)
    sets = ["one", "one", "one", "two"]
    return influence.build(values, query=["x", "y", "z", "x"], query_set=sets, train=train, truth=truth)


IDS = ["a", "b", "c", "d"]
MATRIX = np.arange(16.0).reshape(4, 4)
EXPECTED = [[0, 1, 2], [5, 6, 4], [11, 8, np.nan], [14, 15, 13]]


def nested():
    keys = ["x", "y", "z", "two/x"]
    return {key: dict(zip(IDS, row, strict=True)) for key, row in zip(keys, MATRIX.tolist(), strict=True)}


def write(folder, suffix, matrix=MATRIX, **named):
    path = folder / f"mine{suffix}"
    if suffix == ".npy":
        np.save(path, matrix)
    elif suffix == ".npz":
        np.savez(path, scores=matrix, **{name: np.array(ids) for name, ids in named.items()})
    elif suffix == ".pt":
        torch.save({"scores": torch.from_numpy(matrix), **named} if named else torch.from_numpy(matrix), path)
    elif suffix == ".safetensors":
        save_file({"scores": matrix}, path, metadata={name: json.dumps(ids) for name, ids in named.items()})
    return path


def test_nested_json_goes_by_names_and_by_set(tmp_path, reference):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(nested()))
    found = read_scores(path, reference)
    np.testing.assert_array_equal(influence.scores(found).values, EXPECTED)
    assert found.attrs["label"] == "mine"
    assert found["truth"].equals(reference["truth"])
    influence.save(found, tmp_path / "store")
    assert influence.load(tmp_path / "store").identical(found)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_matrices_follow_queries_and_sorted_training_ids(tmp_path, reference, suffix):
    found = read_scores(write(tmp_path, suffix), reference)
    np.testing.assert_array_equal(influence.scores(found).values, EXPECTED)
    dense = influence.dense(found)
    assert dense["train"].values.tolist() == IDS
    computed = ~np.isnan(dense.values)
    np.testing.assert_array_equal(dense.values[computed], MATRIX[computed])


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_matrices_may_name_their_rows_and_columns(tmp_path, reference, suffix):
    rows, columns = [3, 1, 0, 2], [2, 0, 3, 1]
    names = {"query": [["x", "y", "z", "two/x"][r] for r in rows], "train": [IDS[c] for c in columns]}
    found = read_scores(write(tmp_path, suffix, np.ascontiguousarray(MATRIX[rows][:, columns]), **names), reference)
    np.testing.assert_array_equal(influence.scores(found).values, EXPECTED)


def test_half_precision_tensors(tmp_path, reference):
    path = tmp_path / "mine.pt"
    torch.save(torch.from_numpy(MATRIX).to(torch.bfloat16), path)
    np.testing.assert_array_equal(influence.scores(read_scores(path, reference)).values, EXPECTED)


def without(query, train=None):
    scores = nested()
    if train is None:
        del scores[query]
    else:
        del scores[query][train]
    return scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (without("y"), "query 'y' of set 'one' has no scores"),
        (without("z", "d"), r"pair \(query 'z', train 'd'\) has no score"),
        (
            nested() | {"y": dict.fromkeys(IDS, float("nan"))},
            r"pair \(query 'y', train 'b'\) has the score nan",
        ),
        (nested() | {"y": dict.fromkeys(IDS, "high")}, r"pair \(query 'y', train 'a'\) has the score 'high'"),
        ({"x": [1, 2]}, r"must be nested as \{query: \{train: score\}\}"),
        ([1, 2], "must be nested"),
    ],
)
def test_bad_nested_scores(tmp_path, reference, scores, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(scores))
    with pytest.raises(UserError, match=message) as error:
        read_scores(path, reference)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_matrix_of_the_wrong_shape(tmp_path, reference, suffix):
    with pytest.raises(UserError, match=r"shape \(4, 3\).*needed: 4 queries × 4 training ids"):
        read_scores(write(tmp_path, suffix, np.ascontiguousarray(MATRIX[:, :3])), reference)


@pytest.mark.parametrize("suffix", [".json", ".npy", ".npz", ".pt", ".safetensors"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path, reference, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"PK\x03\x04 no such thing")
    with pytest.raises(
        UserError, match="not valid JSON" if suffix == ".json" else rf"not a readable \{suffix} file"
    ) as error:
        read_scores(path, reference)
    assert "\n" not in str(error.value)


def test_no_file_no_known_suffix_no_single_entry(tmp_path, reference):
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "none.npy", reference)
    with pytest.raises(UserError, match=r"unknown suffix '\.csv'; choices: \.json"):
        read_scores(tmp_path / "mine.csv", reference)
    path = tmp_path / "two.npz"
    np.savez(path, a=MATRIX, b=MATRIX)
    with pytest.raises(UserError, match="has the entries a, b; name one 'scores'"):
        read_scores(path, reference)
