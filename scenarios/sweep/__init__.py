"""Many runs of one scenario: axes, points, who computes them, what was found.

May import: scenarios.forecast.
"""
