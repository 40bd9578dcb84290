"""Any result in other people's formats; which kind of result a folder holds.

May import: reports.plan, reports.size, reports.sweep.
"""
