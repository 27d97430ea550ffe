"""Measured beside other queues and beside what the machine can do at all: ``python -m benchmarks``.

What counts is a ratio of two things that ran in the same minute on the same machine, never a figure alone.
"""
