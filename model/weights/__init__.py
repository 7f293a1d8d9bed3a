"""The weights of the embedded model, `mini.safetensors` (package data), and the terms under which they may be used."""

MINI_TERMS = "non-commercial research: trained on BSDS500 photographs, among others; see docs/model-card.md"
