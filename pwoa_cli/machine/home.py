"""The user's home folder, where there is one: a container may run without HOME and without an entry for the
user."""
from pathlib import Path


def home() -> Path | None:
    """None where the machine does not know it."""
    try:
        return Path.home()
    except RuntimeError:
        return None
