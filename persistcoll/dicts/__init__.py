"""The dicts: classes with the interface of ``dict``, each over a store of pairs."""
