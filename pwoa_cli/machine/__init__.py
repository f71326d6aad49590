"""This machine: memory, devices, seeds, versions. It may import nothing but errors."""
