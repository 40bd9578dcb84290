"""Small runs for a scaling law: byte-level language models of several sizes, on one CPU core.

    python docs/examples/laws/train.py transformer > transformer.csv
    python docs/examples/laws/train.py lstm > lstm.csv

What they learn is the source of Python's own standard library, which every machine with Python
has; a twentieth of it is held out. Every run spends the same FLOPs (6 x parameters x tokens), and
its held-out loss is taken at the same eighths of a decade on the way: curves that are compared at
equal compute, and whose lower envelope is the best use of it (Hoffmann et al. 2022, approach 1).
The learning rate is constant after its warm-up, so that a point on the way is a run that ended.
"parameters" are those that a token passes: the embedding is tied to the head and counted once.
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CONTEXT, BATCH = 128, 4  # tokens of a sequence, sequences of a step
BYTES = 256
WIDTHS = {
    "transformer": (8, 12, 16, 24, 32, 48),
    "lstm": (8, 12, 16, 24, 32, 48),
    "one-layer": (8, 12, 16, 24, 32, 48),
    "sgd": (8, 12, 16, 24, 32, 48),
}


class Block(nn.Module):
    """A pre-norm transformer layer with heads of width 8 or more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 16)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = (
            self.qkv(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Model(nn.Module):
    """Bytes [batch, length] -> logits [batch, length, 256]."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(BYTES, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.recurrent = kind == "lstm"
        if self.recurrent:
            self.body: nn.Module = nn.LSTM(width, width, num_layers=2, batch_first=True)
        else:
            self.places = nn.Parameter(torch.randn(CONTEXT, width) * width**-0.5)
            layers = 1 if kind == "one-layer" else 2
            self.body = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        x = self.body(x)[0] if self.recurrent else self.body(x + self.places)
        return F.linear(self.norm(x), self.table.weight)

    def parameters_of_a_token(self) -> int:
        return sum(one.numel() for name, one in self.named_parameters() if name != "places")


def sequences(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of the library's source to learn from, in a random order, and those held out."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    text = np.frombuffer(b"".join(path.read_bytes() for path in files), dtype=np.uint8)
    rows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    held_out = len(rows) // 20
    return torch.from_numpy(rows[held_out:].copy()).long(), torch.from_numpy(
        rows[: min(held_out, 96)].copy()
    ).long()


def curve(kind: str, width: int, flops: float, seed: int) -> Iterator[tuple[int, int, float]]:
    """(parameters, tokens, held-out loss in nats a byte) on the way to so many FLOPs."""
    learn, held_out = sequences(0)
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    model = Model(kind, width)
    count = model.parameters_of_a_token()
    rate = 0.02 * (16 / width) ** 0.7
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        rate *= 25
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.98))
    budgets = [flops * 10 ** (-eighth / 8) for eighth in range(8, -1, -1)]
    stops = [max(1, round(budget / (6 * count * CONTEXT * BATCH))) for budget in budgets]
    for step in range(1, stops[-1] + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 30)
        rows = learn[order.integers(len(learn), size=BATCH)]
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step in stops:
            with torch.no_grad():
                found = F.cross_entropy(
                    model(held_out[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten()
                )
            if not math.isfinite(found.item()):
                raise ValueError(f"{kind} of width {width} diverged after {step} steps")
            yield count, step * CONTEXT * BATCH, found.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=sorted(WIDTHS))
    parser.add_argument("--flops", type=float, default=2e10, help="of every run")
    parser.add_argument("--widths", type=int, nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("run,parameters,tokens,loss", flush=True)
    for width in given.widths or WIDTHS[given.kind]:
        began = time.process_time()
        for count, tokens, loss in curve(given.kind, width, given.flops, given.seed):
            print(f"{given.kind}-{width},{count},{tokens},{loss:.4f}", flush=True)
        spent = time.process_time() - began
        print(f"{given.kind} of width {width}: {spent:.0f} CPU-seconds", file=sys.stderr)


if __name__ == "__main__":
    main()
