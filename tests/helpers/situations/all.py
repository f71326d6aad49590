"""All situations."""
from helpers.situations import (
    SITUATIONS,
    data,
    exports,
    files,
    library,
    machine,
    models,
    options,
    recipes,
    runs,
)

__all__ = ["SITUATIONS", "data", "exports", "files", "library", "machine", "models", "options", "recipes",
           "runs"]
