"""Stores on database servers: one algorithm, and what differs between the servers in a package for each."""
