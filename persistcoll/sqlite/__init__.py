"""Tables of records with states, and mappings, in SQL databases."""
