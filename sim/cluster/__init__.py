"""Several engines: routers, pools, failures, autoscaling, caches on their way.

May import: sim.engine.
"""
