"""How a SAM is trained: scenes and photographs, prompts, losses, and the loop around them."""
