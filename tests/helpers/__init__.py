"""What several tests need, in one place."""
