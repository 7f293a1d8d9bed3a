"""How good a model is: figures of masks against annotations. Every number that `maskmill evaluate` prints."""
