"""Bring a data set's feature cache up to date, and look after what is there."""
