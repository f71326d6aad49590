"""How workflows speak: a line for people, and how far a phase is. Only the command line prints."""
from collections.abc import Callable

Say = Callable[[str], None]  # a line for people
Progress = Callable[[str, int, int, str], None]  # phase, steps done, steps in all, more
