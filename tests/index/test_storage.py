"""Rows in fewer bits: how far they are from what they were, whatever the size of their entries."""

import numpy as np
import pytest
import torch

from tdaexp.index.storage import check_storage, packed, row_bytes, unpacked
from tdaexp.runtime.errors import UserError

COLUMNS = [slice(0, 7), slice(7, 8), slice(8, 40)]


@pytest.fixture
def rows():
    """Components and examples whose entries differ by many orders of magnitude, a row of zeros among them."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(6, 40, generator=generator) * torch.logspace(-30, 20, 6)[:, None]
    found[:, COLUMNS[1]] *= 1e9
    found[2] = 0
    return found


@pytest.mark.parametrize(("storage", "bound"), [("float16", 2.0**-11), ("int8", 0.5 / 127)])
def test_an_entry_is_off_by_a_rounding_of_its_components_largest(rows, storage, bound):
    kept, scale = packed(rows, COLUMNS, storage)
    assert str(kept.dtype) == f"torch.{storage}" and scale.dtype == torch.float32
    error = (unpacked(kept, scale, COLUMNS).double() - rows.double()).abs()
    for column in COLUMNS:
        largest = rows[:, column].abs().amax(1).double()
        assert (error[:, column].amax(1) <= 1.001 * bound * largest).all()
    assert error.max() > 0 and not error[2].any()


def test_a_power_of_two_times_a_short_number_is_kept_exactly():
    rows = torch.tensor([[1.5, -3.0, 0.0]]) * 2.0**-60
    assert torch.equal(unpacked(*packed(rows, [slice(0, 3)], "float16"), [slice(0, 3)]), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_as_they_were_computed_stay_what_they_are(rows, dtype):
    kept, scale = packed(rows.to(dtype), COLUMNS, None)
    assert scale is None and torch.equal(unpacked(kept, scale, COLUMNS), rows.to(dtype))


@pytest.mark.parametrize("storage", [None, "float16", "int8"])
def test_bytes_of_a_row(rows, storage):
    kept, scale = packed(rows, COLUMNS, storage)
    total = kept.numpy().nbytes + (0 if scale is None else scale.numpy().nbytes)
    assert total == len(rows) * row_bytes(40, len(COLUMNS), storage, np.dtype("float32").itemsize)


def test_another_word_is_refused():
    with pytest.raises(UserError, match=r"method.storage: unknown storage 'float8'.*float16"):
        check_storage("float8")
