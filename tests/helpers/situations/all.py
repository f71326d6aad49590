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
    resumed,
    runs,
    searches,
    slim,
    tables,
)

__all__ = ["SITUATIONS", "data", "exports", "files", "library", "machine", "models", "options", "recipes",
           "resumed", "runs", "searches", "slim", "tables"]
