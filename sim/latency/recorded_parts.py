"""Recorded iterations split into parts, of a latency that knows them from counts but attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

PART_KEYS = ("linear", "moe", "attention", "logits", "communication", "host", "swap")


class RecordedParts(Protocol):
    """Splits durations by `known_parts_s`, the parts that follow from recorded counts."""

    def known_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parts that follow from recorded counts: all but attention."""

    def _within_parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Classes that the parts have beside the one they are mostly of."""

    def parts_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Split recorded iterations' ``duration_s`` into its parts, f8[n] each, adding up to it.

        Records do not keep each prefill's context, so attention is what the other parts leave.
        """
        parts = self.known_parts_s(iterations)
        parts["attention"] = np.maximum(iterations["duration_s"] - sum(parts.values()), 0.0)
        return {key: parts[key] for key in PART_KEYS if key in parts}

    def operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`parts_s` by class of operation."""
        known = self.known_operators_s(iterations)
        rest_s = np.maximum(iterations["duration_s"] - sum(known.values()), 0.0)
        return {"contractions": known.pop("contractions"), "attention": rest_s, **known}

    def known_operators_s(self, iterations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`known_parts_s` by class of operation: all but attention."""
        parts, within = self.known_parts_s(iterations), self._within_parts_s(iterations)
        elementwise, sampling = within["elementwise"], within["sampling"]
        classes = {
            "contractions": parts["linear"] - elementwise + parts["logits"] - sampling,
            "experts": parts.get("moe"),
            "elementwise": elementwise,
            "sampling": sampling,
            "all_reduce": parts["communication"] - within["all_to_all"] - within["gather_and_send"],
            "all_to_all": within["all_to_all"],
            "gather_and_send": within["gather_and_send"],
            "swap": parts.get("swap"),
            "host": parts["host"],
        }
        return {
            name: np.maximum(time_s, 0.0)  # a difference of sums may be a rounding below zero
            for name, time_s in classes.items()
            if time_s is not None
        }
