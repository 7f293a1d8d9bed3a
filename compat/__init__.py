"""Other libraries' interfaces over maskmill's engine: programs written for them change an import line."""
