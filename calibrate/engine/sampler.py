"""From hidden states to token ids."""

from __future__ import annotations

import torch

from calibrate.engine.executor import Sampling
from kernels.logits_and_sample import sample
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
        tokens = self.choose(logits)
        # A NaN in a hidden state makes every logit of its row one.
        chosen = logits.gather(1, tokens.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        finite = chosen.isfinite() & hidden.sum(dim=1, dtype=torch.float32).isfinite()
        return torch.where(finite, tokens, ~tokens)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """A token for each row of logits: [n] int64."""
        backend, sampling, device = self.model.backend, self.sampling, logits.device
        if sampling.temperature <= 0:
            return sample(logits, backend=backend)
        count = len(logits)
        uniform = torch.rand(count, device=device, generator=self._generator)
        heat = torch.full((count,), sampling.temperature, device=device)
        top_k = sampling.top_k and torch.full((count,), sampling.top_k, device=device)
        top_p = sampling.top_p and torch.full((count,), sampling.top_p, device=device)
        return sample(
            logits, temperature=heat, top_k=top_k, top_p=top_p, uniform=uniform, backend=backend
        )
