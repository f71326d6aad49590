"""What tests share: one thread (the machines are small), fixtures of whole commands and data sets, every
report held to its published schema."""
import json
import signal
from pathlib import Path

import pytest
import torch
from helpers.cli_world import here, pwoa, world  # noqa: F401 (fixtures)
from helpers.data_files import nowhere  # noqa: F401 (a fixture)
from jsonschema import Draft202012Validator

from pwoa_cli.files.plain import dumps
from pwoa_cli.reports import write

SHARED = Path(__file__).resolve().parents[2] / "shared"
# figures and checkpoints of other people, which lie beside the checkout in CI and are not given to users
collect_ignore_glob = [] if SHARED.is_dir() else ["*/test_shared_*.py"]
torch.set_num_threads(1)
# a job in the background ignores them, and so would all that tests start: in a terminal they arrive
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)
PUBLISHED = Path(__file__).parents[1] / "docs" / "report.schema.json"


@pytest.fixture(scope="session", autouse=True)
def published_schema():
    """Every report.json that a test of this process writes is what the published schema says."""
    validator = Draft202012Validator(json.loads(PUBLISHED.read_text(encoding="utf-8")))
    write_json = write.write_json

    def checked(path, value):
        validator.validate(json.loads(dumps(value)))
        write_json(path, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_json", checked)
        yield validator
