"""Interfaces of other libraries on maskmill's engine: a program written for them changes only its imports."""
