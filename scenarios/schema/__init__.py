"""What a scenario may say: its sections, reading them, explaining them.

May import: nothing.
"""
