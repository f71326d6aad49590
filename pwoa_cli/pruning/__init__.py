"""Which weights go: tensors in, masks and quotas out. It may import losses."""
