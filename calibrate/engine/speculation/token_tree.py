"""The tree of candidates that one sequence brings to a verification (SpecInfer, section 4).

Node 0 is the sequence's own last token, the root; the others follow level by level, so that a
node's children lie side by side. A chain is a tree with one child a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.speculation import DraftShape

MOST_TOKENS = 64  # bits of a token's mask in `kernels.decode_attention`


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A tree's shape, the same for every sequence and every verification.

    depths, words: by node, the root included; a word has a bit for each node that this one sees,
    itself included. children: by node, (first, end). levels: (first, end) of the nodes of each.
    """

    depths: tuple[int, ...]
    words: tuple[int, ...]
    children: tuple[tuple[int, int], ...]
    levels: tuple[tuple[int, int], ...]
    branching: tuple[int, ...]

    @classmethod
    def of(cls, shape: DraftShape) -> TokenTree:
        """The tree of a chain or tree of drafts. Raises ValueError for one too wide to verify."""
        before = (1, *shape.frontiers[:-1])
        branching = tuple(
            width // last for width, last in zip(shape.frontiers, before, strict=True)
        )
        is_chain = max(branching) == 1
        if not is_chain and shape.query_tokens > MOST_TOKENS:
            raise ValueError(
                f"branching {list(branching)} verifies {shape.query_tokens} tokens a sequence: the "
                f"engine verifies trees of at most {MOST_TOKENS}"
            )
        depths, parents, levels = [0], [-1], [(0, 1)]
        children: list[tuple[int, int]] = []
        for depth, count in enumerate(branching, start=1):
            first = len(depths)
            for parent in range(*levels[-1]):
                children.append((len(depths), len(depths) + count))
                depths += [depth] * count
                parents += [parent] * count
            levels.append((first, len(depths)))
        children += [(0, 0)] * (len(depths) - len(children))
        words: list[int] = []
        for node, parent in enumerate(parents):
            words.append((words[parent] if node else 0) | (1 << node))
        return cls(tuple(depths), tuple(words), tuple(children), tuple(levels), branching)

    @property
    def is_chain(self) -> bool:
        """Whether every node has one child: then no mask is needed."""
        return max(self.branching) == 1

    def __len__(self) -> int:
        return len(self.depths)
