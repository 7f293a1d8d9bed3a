"""Evaluation: measures masks against annotations. Computes all figures that `maskmill evaluate` prints."""
