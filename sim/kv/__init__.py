"""Memory for keys and values: blocks, prefix cache, its second tier, the budget.

May import: sim.model.
"""
