"""Measurements beside other queues and beside bare loops: ``python -m benchmarks``.

What counts is the ratio of two things that ran in the same minute on the same machine, never a number alone.
"""
