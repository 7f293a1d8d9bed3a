"""Package data: the weights of the embedded model, `mini.safetensors`."""
