import logging

import pytest

from tdaexp.runtime.quiet import quiet


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
