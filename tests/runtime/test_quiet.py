import logging
import warnings

import pytest

from tdaexp.runtime.quiet import quiet, unheard_warnings


def test_only_errors_pass_and_levels_come_back(caplog):
    child = logging.getLogger("chatty.http")
    before = logging.getLogger("chatty").level
    with pytest.raises(RuntimeError), quiet("chatty"):
        child.warning("Retrying in 8s")
        child.error("broken")
        raise RuntimeError
    child.warning("after")
    assert [record.message for record in caplog.records] == ["broken", "after"]
    assert logging.getLogger("chatty").level == before


def test_only_torch_s_word_on_its_thread_is_unheard():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with unheard_warnings():
            warnings.warn("Attempting to run cuBLAS, but there was no current CUDA context! (…)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in heard] == ["something else"]
