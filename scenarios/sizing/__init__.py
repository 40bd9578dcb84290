"""What a budget buys: scaling laws, training, serving costs.

May import: scenarios.plan.
"""
