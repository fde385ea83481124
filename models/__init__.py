"""Pure torch: tensors in, tensors out. No IO, no logging, no clock."""
