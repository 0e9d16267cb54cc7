from dataclasses import dataclass

import numpy as np
import pytest

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint


@dataclass
class Settings:
    width: int = 3


@dataclass
class Other:
    width: int = 3


def test_dict_order_does_not_matter_but_values_do():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_arrays_count_by_dtype_shape_and_content():
    values = np.arange(6)
    assert fingerprint(values) == fingerprint(np.arange(6))
    assert fingerprint(values) != fingerprint(values.reshape(2, 3))
    assert fingerprint(values) != fingerprint(values.astype(np.int32))
    assert fingerprint(values) != fingerprint(values + 1)
    assert fingerprint(np.array(["a", "b"])) != fingerprint(np.array(["a", "c"]))


def test_dataclasses_count_by_class_and_fields():
    assert fingerprint(Settings()) == fingerprint(Settings(3))
    assert fingerprint(Settings()) != fingerprint(Settings(4))
    assert fingerprint(Settings()) != fingerprint(Other())


def test_an_object_that_has_no_plain_form_is_refused():
    with pytest.raises(TypeError):
        fingerprint(object())


def test_a_folder_counts_by_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("x")
    first = file_fingerprint(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = file_fingerprint(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, second, file_fingerprint(tmp_path)}) == 3


def test_of_a_path_that_is_not_there_is_no_digest(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        file_fingerprint(tmp_path / "moved")
