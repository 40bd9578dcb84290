"""Which drafted tokens stand: a greedy target's own, or as many as leave its distribution as it is.

Greedy: a node is accepted when it is the target's likeliest token after its parent. Rejection
sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023): a token x that was drawn from q is
accepted with probability min(1, p(x)/q(x)); where it is not, p becomes max(0, p − q), normalised.
Siblings were drawn from the same q independently, so the next one is tried against the new p
(SpecInfer, Miao et al. 2024, section 4.3); what is left when all are refused is sampled from.

Where a sequence's next token is known beforehand (the answer is in the trace), that is the token
that stands, and a node is accepted when it is that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.engine.speculation.proposer import Proposal
from calibrate.engine.speculation.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one sequence: nodes that stand, the root first; what the target says after each of them.

    ``sampled`` are the target's own choices and ``fed`` what goes in instead of them, one for every
    node of the path: the accepted nodes' tokens, and after the last node the target's.
    """

    path: list[int]
    sampled: list[int]
    fed: list[int]


def greedy(
    tree: TokenTree, width: int, drafts: Sequence[int], chosen: Sequence[int], known: Sequence[int]
) -> Verdict:
    """Walk down from the root while a child is what the target chose.

    Args:
        width: nodes that were verified, the first of them.
        drafts: [nodes] tokens proposed; the root's is not read.
        chosen: [width] the target's likeliest token after each.
        known: the sequence's next tokens where they are known, as far as they are.
    """
    path = [0]
    sampled: list[int] = []
    fed: list[int] = []
    while True:
        node, place = path[-1], len(fed)
        sampled.append(chosen[node])
        fed.append(known[place] if place < len(known) else chosen[node])
        child = next((one for one in _children(tree, node, width) if drafts[one] == fed[-1]), None)
        if child is None:
            return Verdict(path, sampled, fed)
        path.append(child)


def by_rejection(
    tree: TokenTree,
    widths: np.ndarray,
    proposal: Proposal,
    target: torch.Tensor,
    known: Sequence[Sequence[int]],
    *,
    generator: torch.Generator | None,
) -> list[Verdict]:
    """Rejection sampling of every sequence at once; the host waits once, at the end.

    Args:
        widths: [D] nodes verified of each sequence.
        target: [D, nodes, vocabulary] its probabilities after each node, float; rows of nodes that
            were not verified are not read.
        known: as for `greedy`, of each sequence.
    """
    device, rows = target.device, target.shape[0]
    every = torch.arange(rows, device=device)
    counts = torch.from_numpy(widths.astype(np.int64)).to(device)
    depth = len(tree.branching)
    told = np.full((rows, depth + 1), -1, dtype=np.int64)
    for row, tokens in enumerate(known):
        told[row, : min(len(tokens), depth + 1)] = tokens[: depth + 1]
    given = torch.from_numpy(told).to(device)
    node = torch.zeros(rows, dtype=torch.int64, device=device)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    steps: list[torch.Tensor] = []  # nodes accepted, -1 where a sequence has ended
    said: list[torch.Tensor] = []
    for level in range(depth + 1):
        p = target[every, node]
        fixed = given[:, level] >= 0
        accepted = torch.zeros_like(going)
        taken = node
        if level < depth:
            first = tree.levels[level + 1][0]
            count = tree.branching[level]
            begin = first + (node - tree.levels[level][0]) * count
            q = None if proposal.probabilities is None else proposal.probabilities[every, node]
            for rank in range(count):
                child = (begin + rank).clamp(0, len(tree) - 1)
                open_ = going & ~accepted & (child < counts)
                token = proposal.tokens[every, child]
                here = p.gather(1, token[:, None])[:, 0]
                likely = 1.0 if q is None else q.gather(1, token[:, None])[:, 0]
                number = torch.rand(rows, dtype=p.dtype, device=device, generator=generator)
                stands = torch.where(fixed, token == given[:, level], number * likely < here)
                new = open_ & stands
                taken = torch.where(new, child, taken)
                accepted |= new
                refused = open_ & ~stands & ~fixed
                left = p.scatter(1, token[:, None], 0.0) if q is None else (p - q).clamp(min=0.0)
                total = left.sum(-1, keepdim=True)
                # Where p is q to the last bit nothing is left: then a refusal is rounding.
                left = torch.where(total > 0, left / total.clamp(min=1e-300), p)
                p = torch.where(refused[:, None], left, p)
        own = _drawn(p, generator)
        if level < depth:
            own = torch.where(accepted & ~fixed, proposal.tokens[every, taken], own)
        said.append(own)
        steps.append(torch.where(accepted, taken, -1))
        node, going = taken, accepted
    found = torch.stack((torch.stack(steps, 1), torch.stack(said, 1)), 1).tolist()  # waits
    verdicts = []
    for (nodes, tokens), sure in zip(found, told.tolist(), strict=True):
        path = [0]
        while len(path) <= depth and nodes[len(path) - 1] >= 0:
            path.append(nodes[len(path) - 1])
        sampled = tokens[: len(path)]
        fed = [s if s >= 0 else token for s, token in zip(sure, sampled, strict=False)]
        verdicts.append(Verdict(path, sampled, fed))
    return verdicts


def _drawn(probabilities: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """A token of each row, by inverse transform: [rows] int64."""
    running = probabilities.cumsum(-1)
    number = torch.rand(
        len(running), 1, dtype=running.dtype, device=running.device, generator=generator
    )
    passed = (running > number * running[:, -1:]) & (probabilities > 0)
    return passed.int().argmax(-1)


def _children(tree: TokenTree, node: int, width: int) -> range:
    first, end = tree.children[node]
    return range(first, min(end, width))
