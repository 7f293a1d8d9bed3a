"""Keys: validation, conversion from and to file names, and display."""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")


def is_key(key: str) -> bool:
    """Whether `key` is valid: see ReadableStorage."""
    try:
        key.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return "\0" not in key and all(part and not part.startswith(".") for part in key.split("/"))


def utf8_text(name: str) -> str:
    """Converts a file name to valid UTF-8 text: other bytes become \\xhh.

    Different names give different texts: a backslash that would read as the start of such an escape is escaped too.
    """
    escaped = re.sub(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")


def file_name(text: str) -> str:
    """The inverse of `utf8_text`."""
    return os.fsdecode(_ESCAPED.sub(lambda byte: bytes.fromhex(byte[1].decode()), text.encode()))


def one_line(text: str) -> str:
    """Replaces line breaks and other characters that cannot be printed by escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
