"""Latency tables: measured, imported, checked; forecasts held against recorded runs."""
