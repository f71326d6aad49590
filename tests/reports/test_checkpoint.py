"""What `pwoa info` found, for people."""
from helpers.workflow_calls import described
from rich.console import Console

from pwoa_cli.reports import checkpoint


def test_a_terminal_of_60_columns(here):
    with open("/dev/null", "w") as file:
        console = Console(width=60, record=True, file=file)
        console.print(checkpoint.table(described("model.pt")))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("linear1.weight") and "512" in line for line in lines)
