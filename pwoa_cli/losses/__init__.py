"""What a student learns from: pure functions of logits, hidden layers and kernels. It may import nothing of
pwoa."""
