"""Data sets: opened by name or path, prepared once into memory-mapped arrays, drawn from, augmented and dealt out."""
