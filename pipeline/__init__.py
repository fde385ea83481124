"""What each stage of the data pipeline does: plain functions over paths, tables and tensors."""
