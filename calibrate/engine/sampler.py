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

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and whether their logits were finite: [n] int64 and [n] bool."""
        logits = self.model.logits(hidden)
        backend, sampling = self.model.backend, self.sampling
        count = len(logits)
        if sampling.temperature > 0:
            uniform = torch.rand(count, device=hidden.device, generator=self._generator)
            heat = torch.full((count,), sampling.temperature, device=hidden.device)
            top_k = sampling.top_k and torch.full((count,), sampling.top_k, device=hidden.device)
            top_p = sampling.top_p and torch.full((count,), sampling.top_p, device=hidden.device)
            return sample_checked(
                logits, temperature=heat, top_k=top_k, top_p=top_p, uniform=uniform, backend=backend
            )
        return sample_checked(logits, backend=backend)
