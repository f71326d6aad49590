"""Labelled images: where they are found, their formats, samples of them. It may import files and
machine."""
