"""Tests of servers that work together with others."""
