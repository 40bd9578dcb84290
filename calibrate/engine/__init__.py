"""The real run: the simulator's schedulers over a model that computes.

May import: calibrate.device.
"""
