"""Any result in other people's formats; which kind of result a folder holds.

May import: reports.sweep, reports.size, reports.plan and all that lies below.
"""
