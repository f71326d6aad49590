"""`python -m pwoa_cli` is `pwoa`."""
from pwoa_cli.cli.main import entry

entry()
