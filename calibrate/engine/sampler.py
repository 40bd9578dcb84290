"""From hidden states to token ids."""

from __future__ import annotations

import torch

from calibrate.engine.executor import Sampling
from kernels.logits_and_sample import sample_checked
from kernels.transformer import Transformer


class Sampler:
    """Chooses a token for each row of hidden states, by a random stream of its own."""

    def __init__(self, model: Transformer, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling
        device = model.embeddings.device
        self._generator = torch.Generator(device=device).manual_seed(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn, so that a captured graph can choose tokens."""
        return self.sampling.temperature <= 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """A token for each row, its complement (negative) where logits were not finite: [n]."""
        logits = self.model.logits(hidden)
        tokens, finite = self._checked(logits)
        return torch.where(finite, tokens, ~tokens)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """A token for each row of logits: [n] int64."""
        return self._checked(logits)[0]

    def _checked(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, and whether their logits were numbers: [n] int64 and [n] bool."""
        backend, sampling, device = self.model.backend, self.sampling, logits.device
        if sampling.temperature <= 0:
            return sample_checked(logits, backend=backend)
        count = len(logits)
        uniform = torch.rand(count, device=device, generator=self._generator)
        heat = torch.full((count,), sampling.temperature, device=device)
        top_k = sampling.top_k and torch.full((count,), sampling.top_k, device=device)
        top_p = sampling.top_p and torch.full((count,), sampling.top_p, device=device)
        return sample_checked(
            logits, temperature=heat, top_k=top_k, top_p=top_p, uniform=uniform, backend=backend
        )
