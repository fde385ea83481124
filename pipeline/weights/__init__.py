"""Published weights: which there are, their download, and their conversion into the project's weights folder."""
