"""What every page is made of: frame, style, script, words for quantities, plain charts.

May import: nothing.
"""
