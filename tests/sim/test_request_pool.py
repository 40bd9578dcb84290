"""The request pool: a request is in one place at a time, and its timestamps are set once."""

import math

import pytest

from sim.batch import Batch
from sim.request import Emission, Request
from sim.request_pool import RequestPool


def request(index: int = 0, *, prompt: int = 10, output: int = 5) -> Request:
    return Request(index, 1.0 * index, prompt, output, output)


def batch(at_s: float) -> Batch:
    """One whose tokens went out then."""
    return Batch(emission=Emission(at_s))


def decoding(pool: RequestPool, one: Request, now_s: float) -> Request:
    """Bring a request past its prefill, its first token going out at `now_s`."""
    pool.start(one, now_s)
    one.num_computed_tokens = one.num_tokens
    pool.emit_first(one, batch(now_s))
    pool.decodes.add(one)
    return one


def test_running_keeps_the_order_of_admission() -> None:
    pool = RequestPool(16)
    for index in (3, 1, 2):
        pool.start(request(index), 5.0)
    assert [one.index for one in pool.running] == [3, 1, 2]
    assert next(reversed(pool.running)).index == 2, "the next victim is who came last"


def test_a_request_is_scheduled_for_the_first_time_once() -> None:
    pool, one = RequestPool(16), request()
    assert math.isnan(one.scheduled_s)
    pool.start(one, 2.0)
    assert one.scheduled_s == 2.0
    pool.preempt(one, 3.0)
    pool.start(one, 9.0)
    assert one.scheduled_s == 2.0
    assert pool.log.preemptions()["resumed_s"].tolist() == [9.0]


def test_the_first_token_is_recorded_once_also_across_preemption() -> None:
    pool, one = RequestPool(16), request()
    pool.start(one, 0.0)
    first, resumed = batch(1.0), batch(6.5)
    pool.emit_first(one, first)
    assert first.resumed is None, "there is no gap before the first token"
    pool.preempt(one, 2.0)
    pool.start(one, 5.0)
    pool.emit_first(one, resumed)
    assert resumed.resumed is not None and resumed.resumed[one].at_s == 1.0, "the gap it tore"
    assert (one.first_token_s, one.last_token_s, one.num_generated_tokens) == (1.0, 6.5, 2)


def test_preempting_a_decoding_request_takes_it_out_of_the_decodes_with_its_progress() -> None:
    pool, one = RequestPool(16), request()
    decoding(pool, one, 1.0)
    pool.decodes.advance(2, Emission(3.0))
    pool.preempt(one, 3.0)
    assert (pool.decodes.num_seqs, one.joined_step) == (0, -1)
    assert not pool.running
    assert (one.num_generated_tokens, one.num_computed_tokens) == (3, 12)
    assert one.last_token_s == 3.0
    assert one.preemptions == 1


def test_every_request_that_entered_is_somewhere() -> None:
    pool = RequestPool(16)
    pool.waiting.extend([request(0), request(1)])
    pool.swapped.append(request(2))
    pool.start(request(3), 0.0)
    assert pool.num_unfinished == 4
    one = pool.waiting.popleft()
    pool.start(one, 1.0)
    assert pool.num_unfinished == 4
    pool.finish(one, 2.0)
    assert (pool.num_unfinished, pool.num_finished) == (3, 1)
    pool.reject(request(4))
    assert (pool.num_unfinished, pool.num_rejected) == (3, 1)


def test_who_leaves_is_logged_with_all_times() -> None:
    pool, one = RequestPool(16), request(7)
    decoding(pool, one, 8.5)
    ended = pool.decodes.advance(4, Emission(12.0))
    assert ended == [one]
    pool.finish(one, 12.0)
    pool.reject(request(2))
    columns = pool.log.requests()
    assert columns["request"].tolist() == [2, 7], "in order of their numbers"
    assert columns["rejected"].tolist() == [True, False]
    assert columns["finished_s"][1] == columns["last_token_s"][1] == 12.0
    assert (columns["arrival_s"][1], columns["first_token_s"][1]) == (7.0, 8.5)
    for name in ("scheduled_s", "first_token_s", "last_token_s", "finished_s"):
        assert math.isnan(columns[name][0])


def test_who_is_not_running_cannot_finish() -> None:
    with pytest.raises(ValueError, match="not in deque"):
        RequestPool(16).finish(request(), 1.0)
