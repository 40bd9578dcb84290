"""Few simulations at once; a newer request of a page ends its older one; memory stays bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orcast.ui_cli import question
from reports.what_if.answers import Alive, Answer, Answers, SupersededError, Turn


@pytest.fixture(scope="module")
def answer() -> Answer:
    return question("single-stream", ["workload.num_requests=3"])[2]({})


class Slow:
    """Forecasts that take until they are let go, or are wanted no more."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.let_go = answer, threading.Event()
        self.running = self.most = self.asked = self.cancelled = 0
        self.lock = threading.Lock()

    def __call__(self, values: Mapping[str, Any], alive: Alive | None = None) -> Answer:
        with self.lock:
            self.asked += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            while not self.let_go.wait(0.005):
                assert alive is not None
                alive()
        except SupersededError:
            self.cancelled += 1
            raise
        finally:
            with self.lock:
                self.running -= 1
        return self.answer


def ask(answers: Answers, turn: Turn, setting: str) -> str:
    try:
        answers.begin(turn)
        answers.of(setting, {}, turn)
    except SupersededError:
        return "superseded"
    return "answered"


def in_thread(found: list[str], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(ask(*arguments)))
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_two_simulations_run_at_once_whoever_asks(answer: Answer) -> None:
    slow = Slow(answer)
    answers, found = Answers(slow), list[str]()
    threads = [in_thread(found, answers, Turn(f"page {n}", 1), str(n)) for n in range(6)]
    until(lambda: slow.running == 2)
    slow.let_go.set()
    for thread in threads:
        thread.join()
    assert found == ["answered"] * 6
    assert (slow.asked, slow.most) == (6, 2)


def test_a_newer_request_of_the_same_page_ends_the_older_one(answer: Answer) -> None:
    slow = Slow(answer)
    answers, found = Answers(slow), list[str]()
    other = in_thread(found, answers, Turn("other", 1), "z")
    until(lambda: slow.running == 1)
    threads = []
    for number in range(1, 6):  # the third and on would have to wait, were the older ones to go on
        threads.append(in_thread(found, answers, Turn("page", number), str(number)))
        until(lambda number=number: slow.asked == number + 1)  # type: ignore[misc]
    until(lambda: slow.cancelled == 4)
    assert ask(answers, Turn("page", 2), "late") == "superseded"  # one that comes late
    slow.let_go.set()
    for thread in [other, *threads]:
        thread.join()
    assert sorted(found) == ["answered"] * 2 + ["superseded"] * 4


def test_work_stops_when_the_client_has_gone(answer: Answer) -> None:
    slow, left = Slow(answer), threading.Event()
    answers, found = Answers(slow), list[str]()
    thread = in_thread(found, answers, Turn("page", 1, left.is_set), "a")
    until(lambda: slow.running == 1)
    left.set()
    thread.join()
    assert (found, slow.running) == (["superseded"], 0)


def test_an_answer_is_remembered_and_only_so_many_are(answer: Answer) -> None:
    slow = Slow(answer)
    slow.let_go.set()
    answers = Answers(slow, kept=3)
    for number, setting in enumerate("aabacadaebcde"):
        assert ask(answers, Turn("page", number), setting) == "answered"
    assert slow.asked == 9  # a, b, c, d, e; b, c, d and e were forgotten when asked again
    assert len(answers._known) == 3
    for number in range(1000):
        ask(answers, Turn(f"page {number}", 1), "e")
    assert len(answers._latest) <= 256


def test_a_refusal_frees_its_place() -> None:
    def refuse(values: Mapping[str, Any], alive: Alive | None = None) -> Answer:
        raise ValueError("does not fit")

    answers = Answers(refuse)
    for number in range(5):
        with pytest.raises(ValueError, match="does not fit"):
            answers.of("a", {}, Turn("page", number))
