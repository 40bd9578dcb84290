"""Files that others wrote: regular ones of bounded size, and YAML whose aliases are bounded too.

A named pipe would be waited for, a device read without end; an error of reading names its file.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 8 * 2**30
MOST_VALUES = 1_000_000  # of a YAML file, with its aliases followed


def read_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """All of a file. Raises OSError, naming it, for what cannot be read, is no regular file or is
    longer than `most_bytes`."""
    with open(path, "rb", opener=_opener) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            words = f"{size / 1e6:,.0f} MB, at most {most_bytes / 1e6:,.0f} are read"
            raise OSError(errno.EFBIG, words, str(path))
        try:
            return file.read()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def read_text(path: Path, *, errors: str = "strict", most_bytes: int = MOST_BYTES) -> str:
    """The same as a text in UTF-8, ends of lines as they are; UnicodeDecodeError if it is none."""
    return read_bytes(path, most_bytes=most_bytes).decode("utf-8", errors)


def lines_of(path: Path, *, errors: str = "strict") -> io.StringIO:
    """The same as `csv` wants it."""
    return io.StringIO(read_text(path, errors=errors), newline="")


def _opener(path: str, flags: int) -> int:
    found = os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to is not waited for
    mode = os.fstat(found).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        os.close(found)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return found


def load_yaml(text: str, loader: Any) -> Any:
    """Python values of a YAML text, by one of PyYAML's safe loaders.

    Raises yaml.YAMLError, RecursionError or ValueError. Aliases are counted before they are
    followed: a few lines can stand for a thousand million values.
    """
    made = loader(text)
    try:
        node = made.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for over {MOST_VALUES:,} values")
        return made.construct_document(node)
    except (AttributeError, TypeError, KeyError, IndexError, OverflowError) as error:
        # A tag that does not fit its value, such as !!timestamp x.
        raise ValueError(f"a value does not fit its tag ({type(error).__name__})") from None
    finally:
        made.dispose()


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Values that a node stands for, aliases followed; infinite where it holds itself."""
    inner = node.value
    if not isinstance(inner, list):  # a scalar's text
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # what is met again inside itself never ends
        if inner and isinstance(inner[0], tuple):  # a mapping's keys and values
            inner = [one for pair in inner for one in pair]
        known[id(node)] = 1 + sum(_expanded(one, known) for one in inner)
    return known[id(node)]
