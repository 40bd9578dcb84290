"""Workload: validation in one place, slicing, windows, scaling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload import PromptContent, Workload


def three_requests(**changes):
    columns = {
        "arrival_s": [0.0, 1.5, 4.0],
        "prompt_tokens": [10, 20, 30],
        "output_tokens": [1, 2, 3],
    }
    return Workload(**(columns | changes))


def test_columns_become_read_only_arrays_of_fixed_types():
    workload = three_requests()
    assert len(workload) == 3
    assert workload.arrival_s.dtype == np.float64
    for column in (workload.prompt_tokens, workload.output_tokens, workload.max_tokens):
        assert column.dtype == np.int64
        with pytest.raises(ValueError):
            column[0] = 5


def test_the_callers_array_stays_writable_and_untouched():
    prompts = np.array([10, 20, 30])
    three_requests(prompt_tokens=prompts)
    prompts[0] = 11
    assert prompts[0] == 11


def test_max_tokens_is_output_tokens_unless_given():
    assert three_requests().max_tokens.tolist() == [1, 2, 3]
    assert three_requests(max_tokens=[9, 9, 9]).max_tokens.tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival_s": [0, float("nan"), 1]}, r"request 1: arrival_s is nan, expected a finite"),
        ({"arrival_s": [0, 1, float("inf")]}, r"request 2: arrival_s is inf, expected a finite"),
        ({"arrival_s": [-1, 0, 1]}, r"request 0: arrival_s is -1.0, expected 0 or more"),
        ({"arrival_s": [0, 2, 1]}, r"request 2: arrival_s is 1.0, expected no earlier than"),
        ({"prompt_tokens": [1, 0, 1]}, r"request 1: prompt_tokens is 0, expected at least 1"),
        ({"output_tokens": [1, 1, -4]}, r"request 2: output_tokens is -4, expected at least 1"),
        ({"prompt_tokens": [1, 2.5, 1]}, r"request 1: prompt_tokens is 2.5, expected a whole"),
        ({"prompt_tokens": [1, np.nan, 1]}, r"request 1: prompt_tokens is nan, expected a whole"),
        ({"prompt_tokens": [1, 1e300, 1]}, r"request 1: prompt_tokens is 1e\+300, expected a"),
        ({"max_tokens": [1, 1, 3]}, r"request 1: max_tokens is 1, expected at least output_tokens"),
        ({"prompt_tokens": [1, 2]}, r"prompt_tokens has 2 entries, arrival_s has 3"),
        ({"prompt_tokens": [[1], [2], [3]]}, r"prompt_tokens has 2 dimensions, expected 1"),
        ({"prompt_tokens": ["1", "2", "3"]}, r"prompt_tokens holds <U1, expected numbers"),
        ({"request_ids": ["a"]}, r"request_ids has 1 entries, arrival_s has 3"),
        ({"content": PromptContent.from_lists([[1]])}, r"content has 1 entries, arrival_s has 3"),
        ({"max_concurrency": 0}, r"max_concurrency is 0, expected a whole number of at least 1"),
        ({"max_concurrency": 1.5}, r"max_concurrency is 1.5, expected a whole number"),
    ],
)
def test_a_bad_column_is_named_with_request_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        three_requests(**changes)


def test_a_workload_needs_a_request():
    with pytest.raises(ValueError, match="at least one request"):
        Workload([], [], [])


def test_slice_takes_requests_by_number_and_starts_at_zero():
    workload = three_requests(
        request_ids=["a", "b", "c"],
        content=PromptContent.from_lists([[1], [2], [3]]),
        max_tokens=[7, 8, 9],
        max_concurrency=2,
    )
    part = workload.slice(1)
    assert part.arrival_s.tolist() == [0.0, 2.5]
    assert part.prompt_tokens.tolist() == [20, 30]
    assert part.max_tokens.tolist() == [8, 9]
    assert part.request_ids == ["b", "c"]
    assert part.max_concurrency == 2
    assert part.content.block_hashes(0, 1, 1) == workload.content.block_hashes(1, 1, 1)
    assert workload.slice(-2, -1).prompt_tokens.tolist() == [20]
    with pytest.raises(ValueError, match="requests 3 to None of a workload of 3: that leaves none"):
        workload.slice(3)


def test_between_takes_a_window_and_makes_its_start_time_zero():
    part = three_requests().between(1.0, 4.0)
    assert part.arrival_s.tolist() == [0.5]
    assert three_requests().between(1.5, 4.1).arrival_s.tolist() == [0.0, 2.5]
    with pytest.raises(ValueError, match=r"no request arrives between 5 s and 6 s.*0 s to 4 s"):
        three_requests().between(5, 6)
    with pytest.raises(ValueError, match="window is nan"):
        three_requests().between(float("nan"), 6)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_time_scale_must_be_finite_and_positive(scale):
    with pytest.raises(ValueError, match=r"time_scale is .*, expected a finite number above 0"):
        three_requests().scaled(scale)


def test_half_the_time_scale_is_twice_the_load():
    assert three_requests().scaled(0.5).arrival_s.tolist() == [0.0, 0.75, 2.0]


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30).map(sorted),
    st.integers(0, 30),
)
def test_two_slices_hold_every_request_once(arrivals, cut):
    n = len(arrivals)
    workload = Workload(arrivals, range(1, n + 1), [1] * n)
    parts = [
        workload.slice(start, stop).prompt_tokens.tolist()
        for start, stop in ((0, cut), (cut, None))
        if len(range(n)[start:stop])
    ]
    assert [prompt for part in parts for prompt in part] == list(range(1, n + 1))
