"""Bring a data set's feature cache up to date, and maintain its stores."""
