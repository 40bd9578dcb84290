"""A scenario made into objects, simulated, and what its report shows.

May import: scenarios.schema.
"""
