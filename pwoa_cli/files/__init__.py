"""Bytes on disk, whole or not at all: JSON, TOML, metrics, run folders, the sparse file, hashes. It may
import nothing but errors."""
