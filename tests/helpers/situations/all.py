"""All situations."""
from helpers.situations import SITUATIONS, data, files, library, models, options, recipes, runs, slim

__all__ = ["SITUATIONS", "data", "files", "library", "models", "options", "recipes", "runs", "slim"]
