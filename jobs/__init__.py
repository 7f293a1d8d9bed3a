"""The commands of the `maskmill` CLI, one thin module each: parse, call, summarise, exit code."""
