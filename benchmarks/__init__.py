"""Benchmarks: msgbus next to loops that are written by hand on the libraries under it, in one interleaved run.

``python -m benchmarks --help`` tells how to run them. Absolute figures move with the machine: only ratios of one run
count.
"""
