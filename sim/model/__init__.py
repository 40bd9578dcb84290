"""What is served, and on what: a model's shape and work, GPUs and how they share it.

May import: nothing.
"""
