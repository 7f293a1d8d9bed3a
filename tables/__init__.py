"""A run as a product: query, compare and look at its tables. Needs neither a model nor a GPU."""
