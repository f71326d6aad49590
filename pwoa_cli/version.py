"""The version: pyproject.toml and everything else read it here."""

__version__ = "0.2.0"
