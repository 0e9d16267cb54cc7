import pytest

from tdaexp.runtime.errors import UserError, nearest, unknown


def test_the_nearest_name_is_the_one_that_was_meant():
    assert nearest("budgte", ["budget", "seed", "model"]) == "budget"
    assert nearest("zzz", ["budget", "seed"]) is None


def test_unknown_says_where_what_is_near_and_all_choices_in_one_line():
    error = unknown("method", "selct", ["full", "select"], "attribute.yaml")
    assert isinstance(error, UserError)
    assert str(error) == "attribute.yaml: unknown method 'selct'; did you mean 'select'? choices: full, select"


def test_numbers_in_names_are_counted():
    text = str(unknown("component", "x", ["layers.10.q", "layers.2.q", "embed", "3"], "file"))
    assert text.endswith("choices: 3, embed, layers.2.q, layers.10.q")


@pytest.mark.parametrize("count", [3, 100])
def test_long_lists_of_choices_are_cut(count):
    text = str(unknown("component", "x", [f"c{i:03}" for i in range(count)], "file"))
    assert ("…" in text) == (count > 30)
    assert "\n" not in text
