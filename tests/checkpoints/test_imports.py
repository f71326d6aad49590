"""What a file of one of our families needs: torch, safetensors, numpy and the standard library."""
import json
import subprocess
import sys

import pytest
import torch
from helpers.family_checks import SIZES, trained

from pwoa_cli.checkpoints import slim as slim_files
from pwoa_cli.checkpoints.metadata import to_metadata
from pwoa_cli.checkpoints.model import load_model
from pwoa_cli.exports import slim
from pwoa_cli.files import sparse
from pwoa_cli.networks.families import FAMILIES

# stdin: paths; stdout: what each brings beside torch and the standard library, the first time
LOAD = """if True:
    import json, sys
    import torch
    before = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
    import pwoa_cli
    for path in json.load(sys.stdin):
        assert not pwoa_cli.load(path).training
        now = {name.partition(".")[0] for name in sys.modules}
        print(path, *sorted(now - before))
        before |= now"""


@pytest.fixture
def files(tmp_path):
    """Paths of a plain, a sparse and a slim file of each family."""
    found = []
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        net = trained(FAMILIES[name].make(**sizes))
        torch.save({"state_dict": net.state_dict()}, tmp_path / f"{name}.pt")
        loaded = load_model(tmp_path / f"{name}.pt")
        said = to_metadata(loaded)
        sparse.save(net.state_dict(), tmp_path / f"{name}.safetensors", metadata=said)
        slim.save(loaded.model, tmp_path / f"{name}-slim.safetensors", metadata=said | {
            slim_files.MARK: slim_files.WORDS})
        found += [str(tmp_path / f"{name}{end}") for end in (".pt", ".safetensors", "-slim.safetensors")]
    return found


def test_a_file_of_ours_brings_no_library_that_it_does_not_need(files):
    done = subprocess.run([sys.executable, "-c", LOAD], input=json.dumps(files), capture_output=True,
                          text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    path, *brought = done.stdout.splitlines()[0].split()
    own = {"sympy", "mpmath"}  # torch 2.8 imports them when networks are built
    assert path == files[0] and set(brought) - own <= {"pwoa_cli", "safetensors", "numpy"}
    assert done.stdout.splitlines()[1:] == files[1:]
