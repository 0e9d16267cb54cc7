"""Shares of blocks: each block is in one, and what is no share is refused."""

import pytest

from tdaexp.index.shares import share_of
from tdaexp.runtime.errors import UserError


@pytest.mark.parametrize("of", [1, 3, 7, 20])
def test_each_block_is_in_one_share(of):
    shares = [share_of(f"{number}/{of}") for number in range(1, of + 1)]
    assert sorted(block for share in shares for block in share.of_blocks(13)) == list(range(13))
    assert str(shares[-1]) == f"{of}/{of}"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", " 1/4", "٣/٤"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UserError, match=r"shard=.*: must be the number of a task and how many there are"):
        share_of(text)
