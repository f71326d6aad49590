"""One main path a command, read top-down: what is set up and checked, done, written. It may import every room
but cli."""
