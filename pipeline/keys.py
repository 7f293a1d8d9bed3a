"""What a key is, and how keys and file names are shown."""

from __future__ import annotations

import os


def is_key(key: str) -> bool:
    """Whether `key` is one that the Storage interface allows."""
    try:
        key.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return "\0" not in key and all(part and not part.startswith(".") for part in key.split("/"))


def utf8_text(name: str) -> str:
    """A file name as text that can be encoded: bytes that are not UTF-8 become \\xhh."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """The text with its line breaks, and all else that cannot be shown, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
