"""All situations."""
from helpers.situations import SITUATIONS, data, files, library, models, options, recipes, runs

__all__ = ["SITUATIONS", "data", "files", "library", "models", "options", "recipes", "runs"]
