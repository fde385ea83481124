"""From images and videos without labels to action units: one row per face and frame."""
