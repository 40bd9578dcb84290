"""What a reader of a forecast should know of its model: what is assumed, what is approximated."""

from __future__ import annotations

from collections.abc import Iterator

from scenarios.schema.scenario import Scenario
from sim.model.spec import ModelSpec


def model_notes(model: ModelSpec, scenario: Scenario, sequence_tokens: int) -> Iterator[str]:
    """Notes, a line each. ``sequence_tokens`` is the average sequence the cache is sized for."""
    yield from (f"{model.name}: {note}" for note in model.notes)
    asked, known = scenario.engine.max_model_len, model.max_position_embeddings
    if asked is not None and asked > known:
        yield (
            f"engine.max_model_len {asked:,} is longer than the {known:,} positions that "
            f"{model.name} knows: an engine refuses it, or its answers beyond them are poor"
        )
    if model.vision_parameters:
        yield (
            f"{model.name}: its image tower ({model.vision_parameters / 1e6:,.0f} million "
            "parameters) is in the memory; images count as the prompt tokens they become, the time "
            "to encode them is not modelled"
        )
    dtype = scenario.engine.kv_cache_dtype
    groups = model.kv_groups(dtype)
    bounded = [group.label for group in groups if group.window is not None]
    state = model.state_bytes()
    if bounded or state:
        grows = model.kv_bytes_per_token(dtype)
        spread = model.kv_bytes(sequence_tokens, dtype) / sequence_tokens
        kept = [*(f"{label} tokens" for label in bounded), *(["states"] if state else [])]
        yield (
            f"{model.name} keeps {' and '.join(kept)} a sequence beside {grows:,} B a token: the "
            f"KV cache is simulated in blocks of one size, {spread:,.0f} B a token, as sequences "
            f"of {sequence_tokens:,} tokens take; an engine frees what is behind a window"
        )
    if any(mixer.kind in ("sparse", "compressed") for mixer in model.mixers):
        yield (
            f"{model.name}: its indexer's scores and the attention to the best tokens are counted, "
            "other work of picking them is not"
        )
