"""Hints of functions that the command line seldom comes to: attacks and plug-ins, sparse files, damage."""

import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

from helpers import small_models as small
from helpers.cli_world import PRUNE
from helpers.situations import prints
from helpers.situations.files import raises, run_code, weights
from pwoa_cli import attacks
from pwoa_cli.attacks import plugins
from pwoa_cli.checkpoints import readings, signatures
from pwoa_cli.checkpoints.model import Source, load_model
from pwoa_cli.data import datasets
from pwoa_cli.files import metrics, packed, sparse
from pwoa_cli.workflows import images, prune

INFO = ["info", "m.pt"]
SPARSE = "files/sparse.py:"


@prints(
    "attacks/autoattack.py:check: Use",
    "attacks/autoattack.py:check: Leave",
    "attacks/autoattack.py:check: Without",
    "attacks/minimum_norm.py:cw_l2",
)
def attacks_that_cannot_run(tool):
    y = torch.zeros(2, dtype=torch.long)
    for name, side, classes, norm in (
        ("apgd-t", 8, 2, "linf"),
        ("square", 4, 4, "l2"),
        ("square", 12, 4, "l1"),
        ("cw-l2", 8, 4, "linf"),
    ):
        torch.manual_seed(0)
        net, x = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes)), torch.rand(2, 1, side, side)

        def run(one, norm=norm, net=net, x=x):
            draw = torch.Generator().manual_seed(0)
            return one.run(net, x, y, eps=0.1, norm=norm, generator=draw)

        hint = tool.raised(run, attacks.FIXED[name])
        for one in attacks.parse(re.search(r"--attacks (\S+)", hint)[1]):
            run(one)
        if "--norm l2" in hint:
            run(attacks.FIXED[name], norm="l2")


@prints(
    "attacks/plugins.py:load: Uninstall",
    "attacks/plugins.py:load: It takes",
    "attacks/plugins.py:load: Install",
    "attacks/plugins.py:_checked: An attack",
    "attacks/plugins.py:_checked: It takes",
    "attacks/plugins.py:_checked: Report",
)
def plugins_that_fail(tool):
    tool.patch.syspath_prepend(str(Path.cwd()))
    head = "def attack(model, inputs, labels, *, norm, eps, generator):\n    "
    model, x, y = small.lenet().eval(), torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)

    def attacked(code, packages=("made-up",)):
        for package in ("made-up", "made-up-too"):
            info = Path(f"{package.replace('-', '_')}-0.1.0.dist-info")
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
            there = "[pwoa.attacks]\nmade = made_up:attack\n" if package in packages else ""
            (info / "entry_points.txt").write_text(there)
        Path("made_up.py").write_text(code)
        sys.modules.pop("made_up", None)
        (one,) = attacks.parse("made")
        return one.run(model, x, y, eps=0.1, norm="linf", generator=torch.Generator())

    tool.patch.setattr(sys, "dont_write_bytecode", True)
    for code in (
        "attack = 3",
        "import nothing_here",
        head + "raise ValueError",
        head + "return 3",
        head + "model.train(); return inputs",
    ):
        tool.raised(attacked, code)
    tool.raised(attacked, head + "return inputs", ("made-up", "made-up-too"))
    assert attacked(head + "return inputs").equal(x)
    assert plugins.installed().keys() >= {"made"}
    sys.modules.pop("made_up", None)


@prints(
    "checkpoints/state_dict.py:_check_numbers: It looks",
    "checkpoints/state_dict.py:_check_numbers: Save the",
    "checkpoints/state_dict.py:_check_numbers: Save it",
    "checkpoints/state_dict.py:_check_numbers: A q",
    "checkpoints/state_dict.py:_finite",
    "checkpoints/keys.py:cleaned",
)
def tensors_of_other_kinds(tool):
    name, tensor = next((k, t) for k, t in weights().items() if t.ndim > 1)
    hint = ""
    odd = (tensor.to("meta"), tensor.to_sparse(), (9 * tensor).to(torch.int8), tensor / 0)
    for value in odd:
        torch.save(weights() | {name: value}, "m.pt")
        hint += tool.refused(*INFO)
    assert "tensor.to_dense()" in hint
    torch.save({key + 300 * "a": value for key, value in weights().items()}, "m.pt")
    assert "copy the file again" in tool.refused(*INFO)
    torch.save(weights() | {name: odd[1].to_dense()}, "m.pt")
    tool.works(*INFO)
    torch.save({"layer._fsdp_wrapped_module._flat_param": torch.ones(9)}, "m.pt")
    assert "FULL_STATE_DICT" in tool.refused(*INFO)
    from torch.distributed.checkpoint import state_dict
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    assert FullyShardedDataParallel.state_dict_type and StateDictType.FULL_STATE_DICT
    assert state_dict.StateDictOptions(full_state_dict=True) and state_dict.get_model_state_dict


@prints(
    "checkpoints/state_dict.py:_read_file: Check its",
    SPARSE + "_opened: Check the path",
    SPARSE + "_opened: Check the file",
    SPARSE + "_opened: The",
    "files/metrics.py:read_metrics",
    "checkpoints/signatures.py:_read",
    SPARSE + "save",
    "files/atomic.py:atomic: Name a folder",
)
def files_that_cannot_be_read_or_written(tool):
    with tool.patch.context() as patch:
        patch.setattr("builtins.open", _denied)
        tool.raised(load_model, "model.pt")
    tool.raised(sparse.load, Path("absent.safetensors"))
    with tool.patch.context() as patch:
        patch.setattr(sparse, "safe_open", _denied)
        tool.raised(sparse.load, Path("pruned.safetensors"))
    Path("m.safetensors").write_bytes(Path("pruned.safetensors").read_bytes()[:-9])
    tool.raised(sparse.load, Path("m.safetensors"))
    tool.raised(metrics.read_metrics, Path("absent.jsonl"))
    Path("index.json.gz").write_bytes(b"none")
    assert "-m pwoa_cli.checkpoints.signatures_build" in tool.raised(
        signatures.load_index, Path("index.json.gz")
    )
    assert Path(signatures.__file__).with_name("signatures_build.py").is_file()
    tool.raised(sparse.save, weights(), Path("absent/a.safetensors"))
    with tool.patch.context() as patch:
        patch.setattr("os.replace", _denied)
        assert "--out DIR" in tool.refused(*PRUNE)
    tool.works(*PRUNE, "--out", "other")


def _denied(*args, **options):
    raise PermissionError(13, "Permission denied")


@prints(
    SPARSE + "_check_state: Halve",
    SPARSE + "_check_state: Rename",
    SPARSE + "_check_state: Save",
    SPARSE + "_check_state: Convert",
    SPARSE + "_check_metadata",
    SPARSE + "_converted",
    SPARSE + "_index",
    SPARSE + "_file",
    SPARSE + "_check_finite",
    SPARSE + "check: If",
)
def what_a_sparse_file_takes(tool):
    at, w = Path("a.safetensors"), torch.eye(9)

    def hint(state, **options):
        return tool.raised(sparse.save, state, at, **options)

    assert "dtype=torch.bfloat16" in hint({"w": w}, dtype=torch.int16)
    sparse.save({"w": w}, at, dtype=torch.bfloat16)
    hint({"\ud800": w})
    assert "model.state_dict()" in hint({"w": [1.0]})
    assert "with .to_dense() or .float()" in hint({"w": w.to_sparse()})
    for right in (small.lenet().state_dict(), {"w": w.to_sparse().to_dense()}, {"w": w.half().float()}):
        sparse.save(right, at)
    assert "json.dumps" in hint({"w": w}, metadata={"made": {"by": "me"}})
    sparse.save({"w": w}, at, metadata={"made": json.dumps({"by": "me"})})
    assert "torch.bfloat16" in hint({"w": 1e9 * w}, dtype=torch.float16)
    sparse.save({"w": 1e9 * w}, at, dtype=torch.bfloat16)
    assert "torch.bfloat16" in hint({"w": w / 0}, dtype=torch.int8)
    sparse.save({"w": w / 0}, at, dtype=torch.bfloat16)
    with tool.patch.context() as patch:
        patch.setattr(packed, "pack", raises(ValueError("its names take 5 GB")))
        assert "shorter names" in hint({"w": w})
    sparse.save({"w": w}, at)
    content = at.read_bytes()
    found = re.search(rb'version\\": ?(\d)', content)
    at.write_bytes(content[: found.start(1)] + b"9" + content[found.end(1) :])
    tool.raised(sparse.load, at)
    sparse.save({"w": w}, at)
    line = tool.raised(sparse.load, at, max_bytes=9).partition("bound: ")[2].rstrip(".")
    run_code(f"import pwoa_cli.files.sparse; {line}", path=at)


@prints("workflows/images.py:of_some_classes", "checkpoints/readings.py:settle: {}")
def readings_that_images_do_not_tell(tool):
    dataset = datasets.load("tiny.npz")
    loaded = load_model("model.pt")
    few = load_model(Source(small.save(small.lenet(num_classes=3), "three.pt")))
    assert tool.raised(images.of_some_classes, few, dataset) == "Leave --logits out."
    with tool.patch.context() as patch:
        patch.setattr(readings, "_chosen", lambda left, first: None)
        hint = tool.raised(readings.settle, loaded, dataset, say=lambda text: None)
    assert hint.startswith("Say which, as whoever trained it did: ")
    from helpers.situations import followed

    tool.works(*followed(["info", "model.pt", "--data", "tiny.npz"], hint))


@prints("workflows/prune.py:_save", "workflows/prune.py:_check_zeros")
def faults_of_ours(tool):
    fit = prune.fit

    def spoilt(job, **options):
        student = fit(job, **options)
        weight = student.get_parameter(job.plan.weights[0])
        with torch.no_grad():
            weight[weight == 0] = -0.0
        return student

    with tool.patch.context() as patch:
        patch.setattr(prune, "fit", spoilt)
        assert tool.refused(*PRUNE, code=4).startswith("Please report this")
    with tool.patch.context() as patch:
        patch.setattr(prune, "load_model", lambda source: load_model("model.pt"))
        assert tool.refused(*PRUNE, code=4).endswith("the file is kept.")
