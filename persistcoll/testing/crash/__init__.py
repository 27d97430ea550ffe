"""Power cuts: a disk that records, the states that a cut may leave, and the search through all of them."""
