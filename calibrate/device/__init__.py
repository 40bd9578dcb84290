"""What is measured on: device, clocks, versions, timers.

May import: nothing.
"""
