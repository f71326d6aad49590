"""Bytes on disk, whole or not at all: JSON, TOML, metrics, run folders, archives, the sparse file,
hashes. It may import machine."""
