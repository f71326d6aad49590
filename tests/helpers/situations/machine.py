"""Hints on what the machine, the operating system and code of others do while a command runs."""

import shutil
from functools import partial
from unittest.mock import Mock

import pwoa_cli
from helpers.cli_world import PRUNE
from helpers.situations import EVAL, LENET, in_files, prints, typed
from helpers.situations.files import raises
from pwoa_cli.checkpoints import state_dict
from pwoa_cli.cli import streams
from pwoa_cli.workflows import evaluate, prune_job

FAULTS = "cli/faults.py:of: "

typed("workflows/search.py:size_bytes", ["info", "model.pt", "--max-memory", "much"])
typed("machine/memory.py:check_room", ["info", "model.pt", "--max-memory", "1KB"])


@prints("cli/streams.py:apart")
def a_result_that_does_not_arrive(tool):
    with tool.patch.context() as patch:
        patch.setattr(streams, "fault", lambda stream: "No space left on device")
        assert "--resume" in tool.refused(*EVAL, code=4)
    tool.works(*EVAL, "--resume")


@prints("machine/seeds.py:check", "workflows/api.py:evaluate: For example: evaluate")
def calls_from_python(tool):
    assert tool.raised(pwoa_cli.prune, "model.pt", 0.9, seed=-1) == "For example: --seed 0"
    tool.works(*EVAL, "--seed", "0")
    line = tool.raised(pwoa_cli.evaluate, []).removeprefix("For example: ")
    for name in ("a.pt", "b.pt"):
        shutil.copy("model.pt" if name == "a.pt" else "pruned.safetensors", name)
    call = partial(pwoa_cli.evaluate, data="tiny.npz", eps=0.5, samples=20, attacks="fgsm")
    assert len(eval(line, {"evaluate": call})) == 2  # noqa: S307 (the package's own words)


@prints("checkpoints/state_dict.py:read_state_dict: A", "checkpoints/state_dict.py:content_and_names")
def checkpoints_that_no_parser_knows(tool):
    with tool.patch.context() as patch:
        patch.setattr(state_dict, "_plain", raises(ValueError("of another planet")))
        assert "torch.save(model.state_dict(), 'model.pt')" in tool.refused("info", "model.pt")
        tool.raised(state_dict.content_and_names, "model.pt")
    tool.works("info", "model.pt")


@prints(FAULTS + "Please", FAULTS + "pwoa", FAULTS + "Load", FAULTS + "Leave")
def whatever_ends_a_command(tool):
    with tool.patch.context() as patch:
        patch.setattr(prune_job, "read_recipe", None)  # a bug: it is called
        assert tool.refused(*PRUNE, code=4).startswith("Please report this sentence")
    words = [*EVAL[:-1], "pgd-100", "--eps", "1e-6"]
    assert "net.eval()(images): mend it there" in tool.refused(
        *words, "--arch", in_files(TIRED, name="tired.py")
    )
    tool.works(*words, "--arch", in_files(LENET, name="mended.py"))
    with tool.patch.context() as patch:
        patch.setattr(evaluate, "execute", Mock(side_effect=SystemExit(3)))  # frames of a library alone
        assert "state_dict() alone" in tool.refused(*EVAL)
    with tool.patch.context() as patch:
        patch.setattr(evaluate, "execute", raises(RuntimeError(
            "put_ does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'."
        )))
        assert "--deterministic out, or: --device cpu" in tool.refused(*EVAL, "--deterministic")
    tool.works(*EVAL, "--device", "cpu")
    tool.works(*EVAL, "--deterministic", "--device", "cpu")


TIRED = LENET.replace("import LeNet", "import LeNet as Whole") + """

class LeNet(Whole):
    left = 60

    def forward(self, x):
        LeNet.left -= 1
        if LeNet.left < 0:
            raise KeyError("feature")
        return super().forward(x)
"""
