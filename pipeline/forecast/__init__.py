"""What a cache would cost and bring on this machine: a sample is refreshed and trained on, and scaled up."""
