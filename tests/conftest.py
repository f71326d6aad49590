"""What every test shares: one thread (the machines are small), no user's data or runs in reach unless a test puts them there."""
from pathlib import Path

import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
# figures and checkpoints of other people, which lie beside the checkout in CI and are not given to users
collect_ignore_glob = [] if SHARED.is_dir() else ["test_shared_*.py"]
torch.set_num_threads(1)
