"""How long a calibration may take, as people write it."""

from __future__ import annotations

import re


def budget_seconds(text: str) -> float:
    """``8m``, ``90s``, ``1h`` or plain seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"--budget {text!r}: expected a time such as 8m, 90s or 480")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
