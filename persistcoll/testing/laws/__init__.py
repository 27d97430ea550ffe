"""The laws: for each kind of store one or more modules, and a harness that opens the stores."""
