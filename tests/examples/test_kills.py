"""examples/benchmarks/kills.py: what it calls a loss, and a few kills."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples/benchmarks/kills.py"
spec = importlib.util.spec_from_file_location("kills", SCRIPT)
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)


def test_a_half_file_is_one_that_is_there_and_cannot_be_read(tmp_path):
    for name in ("config.toml", "report.json", "state.pt", "model.safetensors", "a.npz"):
        (tmp_path / name).write_bytes(b"{ half")
    (tmp_path / "metrics.jsonl").write_bytes(b"{ half")  # may end anywhere
    (tmp_path / ".pwoa-0123.tmp").write_bytes(b"half")
    assert len(kills.halves(tmp_path)) == 5


def test_ends_are_compared_without_times(tmp_path):
    for name, seconds in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(f'{{"n": 1, "seconds": {seconds}, "created": "x"}}')
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "seconds": {seconds}}}\n')
    (tmp_path / "b/.pwoa.lock").write_text("")
    assert kills.content(tmp_path / "a") == kills.content(tmp_path / "b")
    (tmp_path / "b/metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n')
    assert kills.content(tmp_path / "a") != kills.content(tmp_path / "b")


def test_nothing_is_lost_in_a_few_kills():
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "6", "--seed", "7"], env=os.environ | own,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("| prune", "2"), ("| eval", "2"), ("| export", "2")]
    assert all(cell.strip(" |") == "0" for row in rows for cell in row[4:])
