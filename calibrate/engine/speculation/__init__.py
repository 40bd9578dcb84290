"""Speculation for real: who proposes tokens, and the target that verifies them."""
