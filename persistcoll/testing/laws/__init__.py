"""The laws: one module for each kind of store, and what the functions in it are checked with."""
