"""examples/benchmarks/load.py: what it times and prints."""
import subprocess
import sys
from pathlib import Path

from helpers import small_models as small

from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.files import sparse

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/load.py"
WAYS = ["dense, mapped", "dense, copied", "sparse, as it is", "sparse, format 2", "writing format 2"]


def test_the_tables(tmp_path):
    small.save(small.lenet(), tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"))
    sparse.save(loaded.model.net.state_dict(), tmp_path / "p.safetensors", metadata=to_metadata(loaded))
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "p.safetensors", "--seconds", "0.01",
                           "--rounds", "2"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| p")]
    assert [row[1] for row in rows[:5]] == WAYS
    assert all(float(row[2]) >= 0 and " .. " in row[3] and float(row[6]) > 0 for row in rows[:5])
    assert float(rows[1][6]) == 1 and len(rows) == 6 and " (" in rows[5][1] and float(rows[5][3][:5]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "p.safetensors"]
