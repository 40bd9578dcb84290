"""Collectives among GPUs: latency plus bytes over bandwidth (alpha-beta).

Closed forms for n ranks and a message of B bytes (Thakur, Rabenseifner and Gropp, 2005):

    ring all-reduce      launch + 2 (n - 1) hop + 2 (n - 1) / n x B / bandwidth
    one-shot all-reduce  launch + hop + (n - 1) B / bandwidth     every rank reads all the others
    all-gather           launch + (n - 1) hop + (n - 1) / n x B / bandwidth    B: the whole result
    reduce-scatter       as long as the all-gather of what is scattered
    all-to-all           launch + hop + (n - 1) / n x B / bandwidth    B: what one rank holds
    send                 launch + hop + B / bandwidth

A library takes the faster all-reduce, so does ``all_reduce_s``. An all-to-all's messages leave at
once, each over the switch to its own peer.

Groups that span nodes (``ranks_per_node`` g of n ranks, m nodes) work in two levels, as NCCL does
with an adapter for every GPU: within nodes as above, then each rank with its m - 1 counterparts
over the slower link between nodes. The bytes add up to those of one level:

    all-reduce           + 2 (m - 1) inter hops + 2 (m - 1) / m x B / g / inter bandwidth
    all-gather           + (m - 1) inter hops + (m - 1) / m x B / g / inter bandwidth
    all-to-all           (n - g) / n x B leave the node, (g - 1) / n x B stay in it, at once

The bandwidth is a link's peak times an efficiency, or as measured: where all-reduces of so many
ranks were, their own α and β stand for launch, hops and bandwidth. Without peer access there is no
one-shot all-reduce: its kernel reads the others' memory. In a fabric of links from each to each, n
ranks use n - 1 of a GPU's links.
"""

import numpy as np

from sim.model.hardware import Interconnect

# Published timings on eight H200 (NCCL 2.29): 512 MiB at 78 % of the datasheet's bandwidth with
# 8 ranks, 68 % with 2; vLLM's one-shot kernel in a CUDA graph needs 4.4-4.8 us for 128 bytes
# with 2 to 8 ranks; NCCL's ring 6.0, 9.5 and 16 us with 2, 4 and 8, i.e. about 1 us a step.
LINK_EFFICIENCY = 0.75
LAUNCH_S = 3.5e-6


def all_reduce_bytes(message_bytes: float, ranks: int) -> float:
    """Bytes each rank sends in a bandwidth-optimal all-reduce."""
    return 2 * (ranks - 1) / ranks * message_bytes


def all_gather_bytes(result_bytes: float, ranks: int) -> float:
    """Bytes each rank receives to hold the whole result."""
    return (ranks - 1) / ranks * result_bytes


def all_reduce_s(
    message_bytes: np.ndarray,
    ranks: int,
    interconnect: Interconnect,
    *,
    ranks_per_node: int | None = None,
    link_efficiency: float = LINK_EFFICIENCY,
    launch_s: float = LAUNCH_S,
) -> np.ndarray:
    """Seconds for each message size (any shape); zeros for one rank or an empty message."""
    size = np.asarray(message_bytes, dtype=np.float64)
    if ranks == 1:
        return np.zeros_like(size)
    if ranks_per_node is not None and ranks_per_node < ranks:
        inside = all_reduce_s(
            size, ranks_per_node, interconnect, link_efficiency=link_efficiency, launch_s=launch_s
        )
        across = _across_nodes_s(
            size,
            interconnect,
            nodes=-(-ranks // ranks_per_node),
            ranks_per_node=ranks_per_node,
            link_efficiency=link_efficiency,
            launch_s=launch_s / 2,
        )
        return np.asarray(inside + 2 * across)
    measured = interconnect.measured_among(ranks)
    if measured is not None:
        moved_s = all_reduce_bytes(1.0, ranks) * size / measured[0]
        return np.where(size > 0, measured[1] + moved_s, 0.0)
    bytes_per_s = interconnect.bytes_per_s_among(ranks, link_efficiency)
    hop_s = interconnect.latency_s
    ring = launch_s + 2 * (ranks - 1) * hop_s + all_reduce_bytes(1.0, ranks) * size / bytes_per_s
    if not interconnect.peer_access:
        return np.where(size > 0, ring, 0.0)
    one_shot = launch_s + hop_s + (ranks - 1) * size / bytes_per_s
    return np.where(size > 0, np.minimum(ring, one_shot), 0.0)


def ring_all_reduce_s(
    message_bytes: np.ndarray, ranks: int, interconnect: Interconnect
) -> np.ndarray:
    """The textbook ring, at the link's own latency and bandwidth, as measured with all-reduces."""
    size = np.asarray(message_bytes, dtype=np.float64)
    steps = 2 * (ranks - 1)
    moved = all_reduce_bytes(1.0, ranks) * size
    return np.where(
        size > 0, steps * interconnect.latency_s + moved / interconnect.bytes_per_s, 0.0
    )


def all_gather_s(
    result_bytes: np.ndarray,
    ranks: int,
    interconnect: Interconnect,
    *,
    ranks_per_node: int | None = None,
    link_efficiency: float = LINK_EFFICIENCY,
    launch_s: float = LAUNCH_S,
) -> np.ndarray:
    """Seconds until every rank holds the result; zeros for one rank or an empty result."""
    size = np.asarray(result_bytes, dtype=np.float64)
    if ranks == 1:
        return np.zeros_like(size)
    if ranks_per_node is not None and ranks_per_node < ranks:
        inside = all_gather_s(
            size, ranks_per_node, interconnect, link_efficiency=link_efficiency, launch_s=launch_s
        )
        across = _across_nodes_s(
            size,
            interconnect,
            nodes=-(-ranks // ranks_per_node),
            ranks_per_node=ranks_per_node,
            link_efficiency=link_efficiency,
            launch_s=launch_s,
        )
        return np.asarray(inside + across)
    bytes_per_s = interconnect.bytes_per_s_among(ranks, link_efficiency)
    steps_s = launch_s + (ranks - 1) * interconnect.latency_s
    return np.where(size > 0, steps_s + all_gather_bytes(1.0, ranks) * size / bytes_per_s, 0.0)


def all_to_all_bytes(held_bytes: float, ranks: int) -> float:
    """Bytes each rank sends of the `held_bytes` it holds: all but the share it keeps."""
    return (ranks - 1) / ranks * held_bytes


def ring_pass_bytes(block_bytes: float, ranks: int) -> float:
    """Bytes each rank sends until every rank has seen every rank's block once."""
    return (ranks - 1) * block_bytes


def all_to_all_s(
    held_bytes: np.ndarray,
    ranks: int,
    interconnect: Interconnect,
    *,
    ranks_per_node: int | None = None,
    link_efficiency: float = LINK_EFFICIENCY,
    launch_s: float = LAUNCH_S,
) -> np.ndarray:
    """Seconds until everybody's share is with everybody; zeros for one rank or nothing to send."""
    held = np.asarray(held_bytes, dtype=np.float64)
    near = min(ranks, ranks_per_node or ranks)
    inside = send_s(
        (near - 1) / ranks * held, interconnect, among=near,
        link_efficiency=link_efficiency, launch_s=launch_s,
    )  # fmt: skip
    if near == ranks:
        return inside
    outside = send_s(
        (ranks - near) / ranks * held, interconnect.between_nodes,
        link_efficiency=link_efficiency, launch_s=launch_s,
    )  # fmt: skip
    return np.asarray(np.maximum(inside, outside))


def send_s(
    message_bytes: np.ndarray,
    interconnect: Interconnect,
    *,
    among: int = 2,
    link_efficiency: float = LINK_EFFICIENCY,
    launch_s: float = LAUNCH_S,
) -> np.ndarray:
    """Seconds from one GPU to another, or to all others `among` several; zeros for no message."""
    size = np.asarray(message_bytes, dtype=np.float64)
    wire_s = size / interconnect.bytes_per_s_among(among, link_efficiency)
    return np.where(size > 0, launch_s + interconnect.latency_s + wire_s, 0.0)


def _across_nodes_s(
    size: np.ndarray,
    interconnect: Interconnect,
    *,
    nodes: int,
    ranks_per_node: int,
    link_efficiency: float,
    launch_s: float,
) -> np.ndarray:
    """Gather (or scatter) of each rank's share with its counterparts on the other nodes."""
    share = all_gather_bytes(1.0, nodes) * size / ranks_per_node
    between = interconnect.between_nodes
    wire_s = share / (between.bytes_per_s * link_efficiency)
    return np.where(size > 0, launch_s + (nodes - 1) * between.latency_s + wire_s, 0.0)
