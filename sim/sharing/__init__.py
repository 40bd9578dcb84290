"""Requests of several sequences that share KV blocks: parallel sampling and beam search.

May import: sim.schedulers.
"""
