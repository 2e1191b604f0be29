"""Names that are not UTF-8: stored, restored and opened; labels in one spelling."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.storage.names import escaped, nfc, restored, storable

ANY = st.binary().map(os.fsdecode)
LIKELY = st.lists(st.sampled_from(["\\", "u", "dc", "5c", "e9", "\udce9", "\udcff", "é", "/"])).map(
    "".join
)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a.png", "a.png"),
        ("é.png", "é.png"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\udce9.jpg"),
        (r"caf\udce9.jpg", r"caf\udc5cudce9.jpg"),
        (r"\udc5c", r"\udc5cudc5c"),
        (r"C:\users", r"C:\users"),
        ("\\" + os.fsdecode(b"\xff"), r"\\udcff"),
        (r"\\udcff", r"\\udc5cudcff"),
        (r"\uDCE9", r"\uDCE9"),
    ],
)
def test_a_name_is_stored_as_text_and_restored(name: str, stored: str) -> None:
    assert storable(name) == stored
    assert restored(stored) == name


@given(st.one_of(ANY, LIKELY))
def test_every_name_is_restored_and_no_two_are_stored_alike(name: str) -> None:
    stored = storable(name)
    assert stored.encode().decode() == stored
    assert restored(stored) == name


def test_json_text_gives_the_bytes_of_a_name_back() -> None:
    import json

    name = os.fsdecode("é".encode() + b"\xe9")
    text = escaped(json.dumps({"path": name}, ensure_ascii=False))
    assert text == '{"path": "é\\udce9"}'
    assert os.fsencode(json.loads(text)["path"]) == b"\xc3\xa9\xe9"


def test_labels_are_in_nfc() -> None:
    assert nfc("cafe\u0301") == "caf\u00e9"
