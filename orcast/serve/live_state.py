"""What the live page shows, second by second, and the limits that it can change."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from orcast.serve.errors import phrased
from orcast.serve.faults import Faults
from orcast.serve.live_engine import LiveEngine
from sim.cluster.replica import ClusterReplica
from sim.queues import QueueRules

KEPT = 600  # seconds
_WINDOW_S = 10.0  # that percentiles are of, on the wall clock
_MOST_AT_ONCE = 2_000  # latencies that a percentile looks at
# Setting: least and most; None stands for no limit where that may be.
SETTINGS: dict[str, tuple[float, float, bool]] = {
    "max_num_waiting": (1, 2**31, True),
    "max_num_queued_reqs": (0, 2**31, True),
    "max_queue_time_s": (0.001, 1e9, True),
    "error_rate": (0.0, 1.0, False),
    "drop_rate": (0.0, 1.0, False),
}


class LiveState:
    """A row for every second, the latest `KEPT` of them."""

    def __init__(self, engine: LiveEngine, faults: Faults, *, about: Mapping[str, Any]) -> None:
        """`about`: name, model and the like, shown as they are."""
        self._engine, self._faults, self._about = engine, faults, about
        self._rows: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._began_s = time.monotonic()
        self._before = (self._began_s, 0, 0, 0)

    def note(self) -> None:
        """A second has passed."""
        engine, recent = self._engine, self._engine.meters.recent
        now_s, sim_s = time.monotonic(), engine.now_s
        counts = (now_s, recent.generated, recent.finished, recent.refused)
        passed_s = max(now_s - self._before[0], 1e-3) * engine.speed
        rates = [(now - then) / passed_s for now, then in zip(counts, self._before, strict=True)]
        self._before = counts
        replicas = engine.cluster.replicas
        row: dict[str, Any] = {
            "at_s": round(now_s - self._began_s, 1),
            "sim_s": round(sim_s, 2),
            "running": sum(one.pool.num_running for one in replicas),
            "waiting": sum(one.num_waiting for one in replicas) + engine.cluster.num_at_the_door(),
            "kv": round(100 * max(one.used_share(sim_s) for one in replicas), 2),
            "serving": engine.cluster.num_serving,
            "tokens_per_s": round(rates[1], 1),
            "requests_per_s": round(rates[2], 3),
            "refused_per_s": round(rates[3], 3),
        }
        for name in ("ttft", "tpot", "e2e"):
            row |= _percentiles(name, getattr(recent, name), now_s)
        self._rows.append(row)

    def shown(self, since: str | None = None) -> dict[str, Any]:
        """For the page: what is new since a time that it was told, and how things stand."""
        engine = self._engine
        after = float(since) if since and since.replace(".", "", 1).isdigit() else -inf
        delay_s = engine.meters.usual_delay_s
        sim_s = engine.now_s
        return {
            "about": self._about,
            "speed": engine.speed,
            "rows": [row for row in self._rows if row["at_s"] > after],
            "replicas": [
                {
                    "number": one.number, "state": state, "running": one.pool.num_running,
                    "waiting": one.num_waiting, "kv": round(100 * one.used_share(sim_s), 1),
                }
                for one, state in zip(engine.cluster.replicas, engine.cluster.states, strict=True)
            ],
            "settings": self.settings,
            "changed": engine.settings_changed,
            "delay_ms": None if delay_s is None else round(1e3 * delay_s, 2),
        }  # fmt: skip

    @property
    def settings(self) -> dict[str, float | None]:
        """As they stand."""
        rules = self._engine.cluster.replicas[0].pool.rules
        found: dict[str, float | None] = dict.fromkeys(SETTINGS)
        if rules is not None:
            found["max_num_waiting"] = rules.max_waiting
            found["max_num_queued_reqs"] = rules.max_unfinished
            found["max_queue_time_s"] = rules.max_wait_s if rules.max_wait_s < inf else None
        return found | {
            "error_rate": self._faults.error_rate, "drop_rate": self._faults.drop_rate,
        }  # fmt: skip

    def change(self, given: Any) -> dict[str, Any]:
        """Take new settings, or let a replica fail. Raises ApiError for what is neither."""
        if not isinstance(given, dict) or not given:
            raise phrased(400, f"Settings are some of {', '.join([*SETTINGS, 'fail'])}.")
        for name, value in given.items():
            if name == "fail":
                self._check_failure(value)
            elif name not in SETTINGS:
                raise phrased(400, f"{name} is no setting; there are {', '.join(SETTINGS)}.")
            else:
                _check(name, value)
        for name in ("error_rate", "drop_rate"):
            if name in given:
                setattr(self._faults, name, float(given[name]))
        if limits := {name: given[name] for name in given if name.startswith("max_")}:
            self._engine.settings_changed = True
            for replica in self._engine.cluster.replicas:
                _limit(replica, limits)
        if "fail" in given:
            seconds = given["fail"].get("recover_after_s")
            self._engine.fail(
                given["fail"]["replica"], recover_after_s=inf if seconds is None else float(seconds)
            )
        return {"settings": self.settings}

    def _check_failure(self, value: Any) -> None:
        count = len(self._engine.cluster.replicas)
        number = value.get("replica") if isinstance(value, dict) else None
        seconds = value.get("recover_after_s") if isinstance(value, dict) else None
        if type(number) is not int or not 0 <= number < count:
            raise phrased(400, f"fail.replica is a number from 0 to {count - 1}.")
        if seconds is not None and not (_number(seconds) and seconds > 0):
            raise phrased(400, "fail.recover_after_s is a number of seconds above 0.")


def _limit(replica: ClusterReplica, limits: Mapping[str, Any]) -> None:
    """Requests from now on find these limits; those that wait already wait on."""
    rules = replica.pool.rules or QueueRules()
    if "max_num_waiting" in limits:
        rules = replace(rules, max_waiting=limits["max_num_waiting"])
    if "max_num_queued_reqs" in limits:
        rules = replace(rules, max_unfinished=limits["max_num_queued_reqs"])
    if "max_queue_time_s" in limits:
        limit_s = limits["max_queue_time_s"]
        rules = replace(rules, max_wait_s=inf if limit_s is None else float(limit_s))
    replica.pool.rules = rules


def _check(name: str, value: Any) -> None:
    least, most, can_be_none = SETTINGS[name]
    if value is None and can_be_none:
        return
    whole = name.startswith("max_num")
    if not _number(value) or not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        none = ", or null for no limit" if can_be_none else ""
        raise phrased(400, f"{name} is {kind} from {least:g} to {most:g}{none}.")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _percentiles(
    name: str, values: Sequence[tuple[float, float]], now_s: float
) -> dict[str, float | None]:
    """Of the latest few seconds, in ms."""
    found: list[float] = []
    for noted_s, seconds in reversed(values):
        if noted_s < now_s - _WINDOW_S or len(found) == _MOST_AT_ONCE:
            break
        found.append(seconds)
    found.sort()
    last = len(found) - 1
    return {
        f"{name}_{percent}_ms": round(1e3 * found[int(percent * last / 100)], 2) if found else None
        for percent in (50, 99)
    }
