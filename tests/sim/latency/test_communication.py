"""Closed forms of the collectives, and their distance from published timings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.latency.communication import (
    all_gather_bytes,
    all_gather_s,
    all_reduce_bytes,
    all_reduce_s,
    all_to_all_bytes,
    all_to_all_s,
    ring_pass_bytes,
    send_s,
)
from sim.model.hardware import Interconnect

NVLINK4 = Interconnect(
    bytes_per_s=450e9, latency_s=1e-6, inter_node_bytes_per_s=50e9, inter_node_latency_s=5e-6
)


def test_one_rank_and_empty_messages_cost_nothing() -> None:
    sizes = np.array([0.0, 1e6])
    assert all_reduce_s(sizes, 1, NVLINK4).tolist() == [0.0, 0.0]
    assert all_gather_s(sizes, 1, NVLINK4).tolist() == [0.0, 0.0]
    assert all_reduce_s(sizes, 8, NVLINK4)[0] == 0.0
    assert all_gather_s(sizes, 8, NVLINK4)[0] == 0.0


def test_bytes_sent_approach_twice_the_message() -> None:
    assert all_reduce_bytes(1000, 2) == 1000
    assert all_reduce_bytes(1000, 8) == 1750
    assert all_gather_bytes(1000, 8) == 875


def test_large_message_approaches_the_ring_bandwidth() -> None:
    size = 2.0**34
    time_s = all_reduce_s(np.array([size]), 8, NVLINK4, link_efficiency=1.0)[0]
    assert 1.75 * size / time_s == pytest.approx(450e9, rel=1e-3)


def test_small_message_takes_the_one_shot_path_whatever_the_ranks() -> None:
    two, eight = (all_reduce_s(np.array([128.0]), ranks, NVLINK4)[0] for ranks in (2, 8))
    assert two == pytest.approx(4.5e-6, rel=0.01)
    assert eight == pytest.approx(two, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_time_never_falls_as_the_message_grows(ranks: int) -> None:
    sizes = np.geomspace(1, 1e10, 400)
    assert np.all(np.diff(all_reduce_s(sizes, ranks, NVLINK4)) > 0)
    assert np.all(np.diff(all_gather_s(sizes, ranks, NVLINK4)) > 0)


@pytest.mark.parametrize(
    ("ranks", "size", "published_s"),
    [
        (8, 128, 4.7e-6),  # vLLM custom all-reduce in a CUDA graph, H200
        (4, 16384, 4.9e-6),
        (8, 8_388_608, 71.8e-6),  # NCCL, H200
        (8, 536_870_912, 2665e-6),
        (2, 536_870_912, 1742e-6),
    ],
)
def test_defaults_are_near_published_h200_timings(
    ranks: int, size: int, published_s: float
) -> None:
    assert all_reduce_s(np.array([size]), ranks, NVLINK4)[0] == pytest.approx(published_s, rel=0.2)


# -- all-to-all, sends, several nodes ---------------------------------------------------------


def slope(seconds: Any, ranks: int, **settings: Any) -> float:
    """Seconds a byte, for large messages."""
    sizes = np.array([2.0**33, 2.0**34])
    low, high = seconds(sizes, ranks, NVLINK4, link_efficiency=1.0, **settings)
    return float((high - low) / 2.0**33)


def test_all_to_all_sends_all_but_a_ranks_own_share() -> None:
    assert all_to_all_bytes(1000, 8) == 875
    assert ring_pass_bytes(1000, 8) == 7000
    assert slope(all_to_all_s, 8) * 450e9 == pytest.approx(0.875)
    assert all_to_all_s(np.array([0.0, 5.0]), 1, NVLINK4).tolist() == [0.0, 0.0]
    assert send_s(np.array([0.0]), NVLINK4).tolist() == [0.0]


@pytest.mark.parametrize(("ranks", "near"), [(16, 8), (32, 8), (8, 1), (6, 2)])
def test_across_nodes_only_a_share_takes_the_slower_link(ranks: int, near: int) -> None:
    nodes = ranks // near
    inside, across = (near - 1) / near / 450e9, (nodes - 1) / nodes / near / 50e9
    assert slope(all_reduce_s, ranks, ranks_per_node=near) == pytest.approx(2 * (inside + across))
    assert slope(all_gather_s, ranks, ranks_per_node=near) == pytest.approx(inside + across)
    leaving = (ranks - near) / ranks / 50e9
    assert slope(all_to_all_s, ranks, ranks_per_node=near) == pytest.approx(leaving)


def test_two_levels_send_as_many_bytes_as_one() -> None:
    ranks, near = 16, 8
    inside, across = all_reduce_bytes(1.0, near), all_reduce_bytes(1.0, ranks // near) / near
    assert inside + across == pytest.approx(all_reduce_bytes(1.0, ranks))


def test_a_group_in_one_node_is_as_before() -> None:
    size = np.geomspace(1, 1e9, 20)
    for collective in (all_reduce_s, all_gather_s, all_to_all_s):
        whole = collective(size, 8, NVLINK4, ranks_per_node=8)
        np.testing.assert_array_equal(whole, collective(size, 8, NVLINK4))


def test_without_peer_access_an_all_reduce_is_a_ring_at_the_measured_rate() -> None:
    host = replace(NVLINK4, bytes_per_s=14.5e9, latency_s=7.8e-6, peer_access=False)
    size = np.array([2.0, 29e6])
    assert all_reduce_s(size, 2, host) == pytest.approx(3.5e-6 + 15.6e-6 + size / 14.5e9)
    # Two RTX PRO 6000s fit 17 to 21 us and 14.5 to 16 GB/s.
    assert 17e-6 < all_reduce_s(size, 2, host)[0] < 21e-6


def test_a_fabric_of_links_to_each_peer_gives_few_ranks_few_links() -> None:
    mesh = replace(NVLINK4, peer_links=7)
    assert mesh.bytes_per_s_among(8, 1.0) == 450e9
    assert mesh.bytes_per_s_among(2, 1.0) == pytest.approx(450e9 / 7)
    large = np.array([1e10])
    two, eight = (all_reduce_s(large, ranks, mesh)[0] for ranks in (2, 8))
    assert two / eight == pytest.approx(7 * 1.0 / 1.75, rel=1e-3)
    sent_s = send_s(large, mesh)[0]
    assert sent_s == pytest.approx(1e10 / (450e9 / 7 * 0.75), rel=1e-3)


def test_what_was_measured_stands_for_launch_hops_and_efficiency() -> None:
    measured = replace(NVLINK4, measured=((4, 5.1e9, 11.2e-6),))
    size = np.array([0.0, 1e6])
    assert all_reduce_s(size, 4, measured) == pytest.approx([0.0, 11.2e-6 + 1.5 * 1e6 / 5.1e9])
    assert all_reduce_s(size, 8, measured) == pytest.approx(all_reduce_s(size, 8, NVLINK4))
    assert measured.given(9e9, 1e-6) == replace(NVLINK4, bytes_per_s=9e9, latency_s=1e-6)
