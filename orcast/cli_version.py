"""Which Orcast this is."""

from __future__ import annotations


def version() -> str:
    """That of the installed package; of these files, where none is installed."""
    from importlib import metadata

    from orcast import __version__

    try:
        return metadata.version("orcast")
    except metadata.PackageNotFoundError:
        return __version__
