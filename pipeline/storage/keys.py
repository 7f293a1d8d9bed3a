"""What a key is, and how keys and file names are shown."""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")


def is_key(key: str) -> bool:
    """Whether `key` is one that the Storage interface allows."""
    try:
        key.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return "\0" not in key and all(part and not part.startswith(".") for part in key.split("/"))


def utf8_text(name: str) -> str:
    """A file name as text that can be encoded: bytes that are not UTF-8 become \\xhh.

    Different names give different texts: a backslash that would look like the beginning of such an escape becomes one.
    """
    escaped = re.sub(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")


def file_name(text: str) -> str:
    """The file name that `utf8_text` made the text of."""
    return os.fsdecode(_ESCAPED.sub(lambda byte: bytes.fromhex(byte[1].decode()), text.encode()))


def one_line(text: str) -> str:
    """The text with its line breaks, and all else that cannot be shown, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
