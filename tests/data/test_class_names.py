"""Names of classes that nobody can tell apart, and what a wrong name may have meant."""

import unicodedata

import pytest

from imago.data.class_names import nearest_class, plain_name, refuse_unclear_names
from imago.errors import DataError


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "Cat"), ("cat", "cat "), ("café", unicodedata.normalize("NFD", "café")), ("straße", "STRASSE")],
)
def test_names_that_look_the_same_are_refused(one: str, other: str):
    assert plain_name(one) == plain_name(other)
    with pytest.raises(DataError) as caught:
        refuse_unclear_names([one, "dog", other], "list.csv: the labels")
    assert str(caught.value) == f"list.csv: the labels {one!a} and {other!a} look the same; merge or rename them."


def test_names_that_look_different_pass():
    refuse_unclear_names(["cat", "cats", "кот", "1", "01", "c a t"], "list.csv: the labels")


def test_a_name_that_is_not_utf_8_is_refused_in_printable_text():
    with pytest.raises(DataError, match=r"^DIR: the class folders: 'caf\\udce9' is not UTF-8; rename it\.$"):
        refuse_unclear_names([b"caf\xe9".decode("utf-8", "surrogateescape")], "DIR: the class folders")


@pytest.mark.parametrize(("name", "hint"), [("bess", "is it 'bees'?"), ("wasps", "the classes are ants, bees.")])
def test_a_wrong_name_is_answered_with_the_nearest_class_or_with_all(name: str, hint: str):
    assert nearest_class(name, ("ants", "bees")) == hint
