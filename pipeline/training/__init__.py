"""Train heads on cached features, and score them."""
