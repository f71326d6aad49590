"""The command line: one file a command, their options, what they print. It may import every room, but no
torch before a command runs."""
