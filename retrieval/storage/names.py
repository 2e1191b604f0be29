r"""Names of files as text that can be stored, and labels in one spelling.

The name of a file is bytes. Python shows a byte that is not UTF-8 as a lone surrogate
(`os.fsdecode`), which Parquet and UTF-8 cannot hold. Such a byte is stored as six characters, such
as `\udce9` for E9. A name that has such six characters of its own is stored with `\udc5c` in place
of their backslash, so that every name can be restored.
"""

import re
import unicodedata

_BACKSLASH = r"\udc5c"  # no byte that is not UTF-8: those are 80 to FF
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\u(d[89a-f][0-9a-f]{2})")


def storable(path: str) -> str:
    """Return the path as valid Unicode text; `restored` gives the path back."""
    if path.isascii() and "\\" not in path:
        return path
    kept = _ESCAPE.sub(lambda found: f"{_BACKSLASH}u{found[1]}", path)
    return kept.encode("utf-8", "backslashreplace").decode()


def restored(text: str) -> str:
    """Return the path that `storable` turned into this text, for `open` and `os.fsencode`."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(
        lambda found: "\\" if found[0] == _BACKSLASH else chr(int(found[1], 16)), text
    )


def nfc(label: str) -> str:
    """Return the label in Unicode NFC: macOS writes é in two characters, keyboards in one."""
    return unicodedata.normalize("NFC", label)


def escaped(json_text: str) -> str:
    r"""Return the JSON text with lone surrogates as escapes, `\udce9`, which makes it UTF-8."""
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)
