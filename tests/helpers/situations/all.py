"""All situations."""
from helpers.situations import (
    SITUATIONS,
    cards,
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
    structures,
    tables,
)

__all__ = ["SITUATIONS", "cards", "data", "exports", "files", "library", "machine", "models", "options",
           "recipes", "resumed", "runs", "searches", "slim", "structures", "tables"]
