"""Rendered faces with known action units, landmarks and boxes, in the raw layouts of BP4D and DISFA."""
