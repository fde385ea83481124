"""The commands of `fantrans`, one module per group of verbs; each imports its stage when it runs."""
