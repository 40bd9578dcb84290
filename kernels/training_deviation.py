"""What an attention's roundings come to in trained weights, against what other choices come to.

    distance(A, B) = mean over weight tensors of W₁(A, B)

with W₁ the Wasserstein distance of their values. Golden et al., "Is Flash Attention Stable?", 2024,
train one model with flash and with standard attention and ask how far their weights drift apart,
beside how far a lower precision of the weights, or another initialisation, moves them: a bound in
context, where nobody can say which deviation makes a training unstable. The same here, with a model
small enough for a processor: a decoder of a few layers on a language that a random table of
transitions speaks, all runs on the same data in the same order. What differs is one thing a run
(`RUNS`); attention is emulated with its roundings explicit (`kernels.numerics`), forwards, and its
casts round the gradients on their way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import tee
from typing import Any

import torch

from kernels.numerics import emulated_flash, emulated_standard

Weights = Mapping[str, torch.Tensor]
LEARNING_RATE = 3e-3
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999
SHARPNESS = 2.0  # of the language's transitions: logits are normal with this deviation


@dataclass(frozen=True, slots=True)
class Training:
    """One run: what it trains, and what it computes otherwise than the baseline.

    attention: standard, flash (statistics in float32) or flash_rounded (all intermediates rounded).
    rounds_weights: weights are rounded to `dtype` for a forward pass; float32 keeps the updates.
    seed: of the initialisation; data have a seed of their own.
    """

    steps: int = 120
    layers: int = 2
    width: int = 64
    heads: int = 2
    tokens: int = 128
    batch: int = 4
    vocabulary: int = 64
    block_tokens: int = 32
    dtype: torch.dtype = torch.bfloat16
    attention: str = "standard"
    rounds_weights: bool = False
    seed: int = 0


# name -> what it changes of the baseline, which has standard attention in low precision
RUNS: Mapping[str, Mapping[str, Any]] = {
    "flash": {"attention": "flash"},
    "flash_rounded": {"attention": "flash_rounded"},
    "low_precision": {"rounds_weights": True},
    "another_seed": {"seed": 1},
}


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a run's weights lie from the baseline's after so many steps.

    wasserstein, largest: the distance above, and the mean over tensors of the largest difference.
    """

    run: str
    step: int
    wasserstein: float
    largest: float
    loss: float
    baseline_loss: float


def drifts(
    training: Training, *, every: int = 20, progress: Callable[[int, int], None] | None = None
) -> Iterator[Drift]:
    """Train the baseline and each of `RUNS` side by side, and compare every so many steps.

    Nothing random but what the seeds say: the same figures on the same machine.
    """
    said, *copies = tee(sentences(training), 1 + len(RUNS))
    baseline = trained(training, said)
    others = {
        name: trained(replace(training, **changed), copy)
        for (name, changed), copy in zip(RUNS.items(), copies, strict=True)
    }
    for step in range(1, training.steps + 1):
        baseline_loss, weights = next(baseline)
        found = {name: next(other) for name, other in others.items()}
        if progress is not None:
            progress(step, training.steps)
        if step % every and step != training.steps:
            continue
        for name, (loss, own) in found.items():
            yield Drift(name, step, *distances(own, weights), loss, baseline_loss)


def distances(a: Weights, b: Weights) -> tuple[float, float]:
    """Means over tensors of the Wasserstein distance of values, and of the largest difference."""
    apart, largest = 0.0, 0.0
    for name, other in b.items():
        # Of as many values on both sides, W₁ is the mean difference of the sorted ones.
        values, others = a[name].flatten().double(), other.flatten().double()
        apart += (values.sort().values - others.sort().values).abs().mean().item()
        largest += (values - others).abs().max().item()
    return apart / len(b), largest / len(b)


def trained(training: Training, batches: Iterable[torch.Tensor]) -> Iterator[tuple[float, Weights]]:
    """Loss in nats a token, and a copy of the weights, after each step of Adam.

    batches: of tokens, [batch, tokens + 1] each.
    """
    weights = _initial(training)
    means = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, batch in enumerate(batches, start=1):
        used = weights
        if training.rounds_weights:
            used = {name: w.to(training.dtype).float() for name, w in weights.items()}
        logits = _decoder(training, used, batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                _adam(weight, gradient, means[name], squares[name], step)
        yield loss.item(), {name: weight.detach().clone() for name, weight in weights.items()}


def _adam(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
) -> None:
    """One step of Kingma and Ba's Adam, in place.

    torch.optim has it too, and with it a compiler whose import takes longer than this study.
    """
    mean.lerp_(gradient, 1 - MEAN_DECAY)
    square.lerp_(gradient.square(), 1 - SQUARE_DECAY)
    root = (square / (1 - SQUARE_DECAY**step)).sqrt_().add_(1e-8)
    weight.addcdiv_(mean, root, value=-LEARNING_RATE / (1 - MEAN_DECAY**step))


def sentences(training: Training) -> Iterator[torch.Tensor]:
    """Batches [batch, tokens + 1] of a language: which token follows depends on the last one."""
    generator = torch.Generator().manual_seed(0)
    shape = (training.vocabulary, training.vocabulary)
    follows = torch.softmax(SHARPNESS * torch.randn(shape, generator=generator), dim=-1)
    while True:
        said = [torch.randint(training.vocabulary, (training.batch,), generator=generator)]
        for _ in range(training.tokens):
            said.append(torch.multinomial(follows[said[-1]], 1, generator=generator)[:, 0])
        yield torch.stack(said, dim=1)


def _initial(training: Training) -> dict[str, torch.Tensor]:
    """Normal weights of variance one over their inputs, float32, by name."""
    generator = torch.Generator().manual_seed(training.seed)
    width, vocabulary = training.width, training.vocabulary
    shapes = {"embedding": (vocabulary, width), "positions": (training.tokens, width)}
    for layer in range(training.layers):
        shapes |= {
            f"{layer}.qkv": (3 * width, width),
            f"{layer}.out": (width, width),
            f"{layer}.up": (4 * width, width),
            f"{layer}.down": (width, 4 * width),
        }
    shapes["logits"] = (vocabulary, width)
    return {
        name: (torch.randn(shape, generator=generator) * shape[1] ** -0.5).requires_grad_()
        for name, shape in shapes.items()
    }


def _decoder(training: Training, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of a pre-norm decoder; float32 but for its attention."""
    hidden = weights["embedding"][tokens] + weights["positions"]
    for layer in range(training.layers):
        qkv = _norm(hidden) @ weights[f"{layer}.qkv"].T
        q, k, v = (
            part.unflatten(-1, (training.heads, -1)).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        heads = _attention(training, q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + heads @ weights[f"{layer}.out"].T
        up = torch.nn.functional.gelu(_norm(hidden) @ weights[f"{layer}.up"].T)
        hidden = hidden + up @ weights[f"{layer}.down"].T
    return _norm(hidden) @ weights["logits"].T


def _attention(
    training: Training, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    q, k, v = (tensor.to(training.dtype) for tensor in (q, k, v))
    if training.attention == "standard":
        return emulated_standard(q, k, v, training.dtype)
    return emulated_flash(
        q,
        k,
        v,
        training.dtype,
        block_tokens=training.block_tokens,
        round_statistics=training.attention == "flash_rounded",
    )


def _norm(hidden: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
