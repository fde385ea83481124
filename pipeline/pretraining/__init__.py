"""Train the shipped networks on rendered faces."""
