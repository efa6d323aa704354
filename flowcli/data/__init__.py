"""Files → Arrow batches → tensors, and back."""
