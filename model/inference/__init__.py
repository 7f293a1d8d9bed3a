"""The inference form of the networks: the same function in less time. Applied from outside, see `model/optimize.py`."""
