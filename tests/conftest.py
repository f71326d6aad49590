"""What tests share: one thread (the machines are small), fixtures of whole commands and data sets."""
from pathlib import Path

import torch
from helpers.cli_world import here, pwoa, world  # noqa: F401 (fixtures)
from helpers.data_files import nowhere  # noqa: F401 (a fixture)

SHARED = Path(__file__).resolve().parents[2] / "shared"
# figures and checkpoints of other people, which lie beside the checkout in CI and are not given to users
collect_ignore_glob = [] if SHARED.is_dir() else ["*/test_shared_*.py"]
torch.set_num_threads(1)
