"""What is asked of the deployment: when requests arrive, how long they are, what they share.

May import: nothing.
"""

from sim.workload.content import PromptContent
from sim.workload.traces import TraceError, read_trace
from sim.workload.workload import Workload

__all__ = ["PromptContent", "TraceError", "Workload", "read_trace"]
