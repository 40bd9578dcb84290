"""One engine over time: the loop, a pipeline's loops, a whole run, and its log.

May import: sim.sharing, sim.workload.
"""
