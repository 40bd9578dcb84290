"""The model of serving: requests, schedulers, KV cache, memory, latency and the simulated clock."""
