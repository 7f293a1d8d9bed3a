"""The network: Segment Anything (Kirillov et al. 2023) in plain torch, and how its small variant is trained."""
