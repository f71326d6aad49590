"""Hints on runs: what is pruned and how, teachers, reports, configurations, what broke."""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import torch
from torch import nn

from helpers import small_models as small
from helpers.cli_world import PRUNE, TINY
from helpers.pages import Page
from helpers.situations import DRY, EVAL, followed, in_files, prints, typed, without
from helpers.situations.files import raises, weights
from pwoa_cli.files import run_folder

JOB, WEIGHTS, SETUP = "workflows/prune_job.py:", "workflows/prune_weights.py:", "workflows/setup.py:"
FINISHED = "workflows/finished_run.py:"



@prints("reports/page.py:check_installed")
def a_page_without_its_extra(tool):
    there = importlib.util.find_spec
    with tool.patch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else there(name))
        assert tool.refused("report", "--html", "a.html") == "pip install 'pwoa-cli[report]'"
    tool.works("report", "--html", "a.html")


@prints("reports/dossier.py:_bench", "reports/pictures.py:of")
def a_page_beside_damaged_files(tool):
    """Said on the page, as the report itself is whole."""
    run = str(run_folder.newest())
    again = ["eval", run, "--attacks", "fgsm", "--n", "20", "--out", f"{run}/eval"]
    tool.works(*again)
    for name in ("bench.json", "eval/samples.npz"):
        Path(run, name).write_text("{")
    tool.works("report", "--html", "a.html")
    said = Page(Path("a.html").read_text()).words
    assert "Make it again: pwoa bench RUN --json > RUN/bench.json" in said
    assert "Make it again: pwoa eval RUN --attacks pgd,cw --out DIR --save-samples DIR/samples.npz" in said
    words = ("bench", run, "--seconds", "0.01", "--batch", "1", "--runtimes", "eager", "--json")
    Path(run, "bench.json").write_text(tool.run(*words)[1])
    tool.works(*again[:-1], f"{run}/new", "--save-samples", f"{run}/new/samples.npz")
    shutil.rmtree(f"{run}/eval")
    tool.works("report", "--html", "a.html")
    assert "Left out" not in Page(Path("a.html").read_text()).words


typed(
    JOB + "_check_structure: --set start",
    [*DRY, "--structure", "filter", "--sparsity", "0.5", "--set", "start=obs", "--set", "mask_updates=4"],
)
typed(
    JOB + "_check_structure: --set regrow",
    [*DRY, "--structure", "filter", "--sparsity", "0.5", "--set", "regrow=0.1"],
)
typed(JOB + "_check_sparsity: Nine", [*DRY, "--sparsity", "1e-9"])


@prints(
    JOB + "_check_reachable: --sparsity",
    JOB + "_check_reachable: A lower",
    JOB + "_check_sparsity: Ask for more: {}",
)
def sparsities_that_cannot_be(tool):
    for kind in ("filter", "column"):
        tool.follow([*DRY, "--sparsity", "0.99", "--structure", kind])
    tool.refused(*DRY, "--sparsity", "0.9999")
    tool.works(*DRY, "--sparsity", "0.99")
    for share in (0.5, 0.8):
        tensors = weights()
        for t in tensors.values():
            if t.ndim > 1:
                t[t.abs() < t.abs().quantile(share)] = 0
        torch.save(tensors, "m.pt")
        words = [
            "prune",
            "m.pt",
            *without(DRY[2:], "--sparsity"),
            "--arch",
            "lenet5",
            "--normalize",
            "none",
            "--sparsity",
            "0.3",
        ]
        tool.follow(words)


def one_layer():
    """The words of a run on a network of one layer."""
    small.save(small.learn(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), "one.pt")
    name = in_files(
        "from torch import nn\ndef fn(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n",
        name="one.py",
    )
    return ["prune", "one.pt", *DRY[2:], "--arch", name]


@prints(
    JOB + "_with_hidden: {}",
    JOB + "_with_hidden: --set",
    WEIGHTS + "_nothing: --structure",
    JOB + "_plan: Distil",
    JOB + "_plan: --set neighbour_weight",
)
def hidden_layers(tool):
    words = one_layer()
    for asked in ("hidden_weight=2", "lambda_x=1e-3"):
        tool.follow([*words, "--set", asked])
    tool.follow([*words, "--set", "hidden=inner"], "--set hidden=auto")
    tool.follow([*DRY, "--set", "hidden=none"], "inner", "--set hidden=inner")
    tool.follow([*words, "--structure", "filter"])
    torch.save(small.learn(small.lenet()).state_dict(), "same.pt")
    wide = small.LeNet(size=8, widths=(4, 8), hidden=24, num_classes=4)
    small.save(small.learn(wide), "wide.pt")
    tool.follow([*DRY, "--teacher", "wide.pt", "--set", "hidden_weight=2"])
    in_files(DROPPING, name="dropping.py")
    exec(DROPPING, names := {})  # noqa: S102
    small.save(small.learn(names["fn"]()), "dropping.pt")
    tool.follow(["prune", "dropping.pt", *DRY[2:], "--arch", "dropping.py:fn", "--set", "neighbour_weight=1"])


DROPPING = """from torch import nn
def fn(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 4))
"""


@prints(
    WEIGHTS + "counted: Whole",
    WEIGHTS + "counted: pwoa",
    WEIGHTS + "_nothing: Whole",
    WEIGHTS + "_nothing: pwoa",
    WEIGHTS + "check_products",
    WEIGHTS + "check_steady: Let --arch",
    WEIGHTS + "check_steady: Let its",
    "training/layout.py:fastest",
)
def networks_that_cannot_be_pruned_so(tool):
    in_files(NETS, name="nets.py")
    exec(NETS, names := {})  # noqa: S102
    torch.manual_seed(0)

    def words(name):
        small.save(small.learn(names[name]()), f"{name}.pt")
        return ["prune", f"{name}.pt", *DRY[2:], "--arch", f"nets.py:{name}"]

    tool.follow([*words("positions"), "--structure", "filter"])
    tool.follow([*words("own"), "--structure", "filter"])
    assert "nn.Linear" in tool.refused(*words("recurrent"))
    assert "nn.Linear" in tool.refused(*words("biased"))
    tool.works(*words("plain"))
    tool.follow([*words("standardised"), "--sparsity", "0.5"], "--structure filter")
    assert "--arch file.py:fn" in tool.refused(*words("counting"))
    hint = tool.refused(*words("dropped"))
    assert "net.eval()" in hint, hint
    trained = words("dropped")
    hint = tool.refused(*trained[:-1], "nets.py:training")
    assert "net.train()" in hint


NETS = """import torch
from torch import nn
from torch.nn import functional as F
def plain(): return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)
def standardised():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), Standardised(6, 8, 3),
                         nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
class Own(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.base = nn.Parameter(torch.randn(b, a) / a ** 0.5)
    def forward(self, x):
        return F.linear(x, self.base)
def own(): return nn.Sequential(nn.Flatten(), Own(64, 16), nn.ReLU(), Own(16, 4))
class positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(128, 4)
        self.where = nn.Parameter(torch.rand(16, 8))
    def forward(self, x):
        return self.head((self.stem(x).flatten(2).transpose(1, 2) + self.where).flatten(1))
class recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)
    def forward(self, x):
        return self.head(self.gru(x[:, 0])[0].mean(1))
class biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 4, batch_first=True)
    def forward(self, x):
        return self.gru(x[:, 0])[0].mean(1)
class dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(288, 4)
    def forward(self, x):
        return self.head(F.dropout(self.conv(x).relu(), 0.1).flatten(1))
class counting(dropped):
    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
    def forward(self, x):
        self.passes += 1
        return self.head(self.conv(x).relu().flatten(1))
class training(dropped):
    def forward(self, x):
        if self.training:
            raise KeyError("feature")
        return self.head(self.conv(x).relu().flatten(1))
"""


@prints(
    SETUP + "open_teacher: A",
    SETUP + "open_teacher: --entry",
    SETUP + "_fitting_data",
    SETUP + "_guess_data",
    "checkpoints/reading.py:run",
    "checkpoints/reading.py:_taking",
    "checkpoints/reading.py:_check_logits: Wrap",
    "checkpoints/reading.py:_check_logits: Check",
)
def models_and_data_that_do_not_fit(tool):
    small.save(small.learn(small.lenet(num_classes=5), classes=5), "five.pt")
    tool.refused(*DRY, "--teacher", "five.pt")
    torch.save({"best": weights(), "last": weights()}, "both.pt")
    assert "a file of its own" in tool.refused(*DRY, "--teacher", "both.pt")
    torch.save(weights(), "own.pt")
    tool.works(*DRY, "--teacher", "own.pt")
    small.save(small.lenet(), "new.pt")
    for words in (["eval", "new.pt", *EVAL[2:]],):
        assert "--data" in tool.refused(*words)
    hint = tool.refused("eval", "model.pt", "--eps", "0.5", "--attacks", "fgsm")
    assert hint.startswith("Name yours: --data FILE.npz")
    small.write_npz("far.npz", classes=8)
    assert "--data" in tool.refused("eval", "model.pt", "--data", "far.npz", *EVAL[4:])
    small.write_npz("colour.npz", channels=3)
    small.save(small.learn(small.resnet(), channels=3), "colour.pt")
    words = ["eval", "colour.pt", "--data", "colour.npz", *EVAL[4:]]
    in_files(ODD, name="odd.py")
    for name, than in (("two_inputs", "cannot take images"), ("pair", "expected logits"), ("nan", "NaN")):
        exec(ODD, names := {})  # noqa: S102
        small.save(names["plain"](), "odd.pt")
        assert (
            "--arch" in tool.refused("eval", "odd.pt", *EVAL[2:], "--arch", f"odd.py:{name}") or name == "nan"
        )
        tool.fails_otherwise("eval", "odd.pt", *EVAL[2:], "--arch", "odd.py:plain", than=than)
    tool.works(*EVAL)
    tool.works(*words)


ODD = """from torch import nn
def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
class two_inputs(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4))
    def forward(self, x, mask):
        return super().forward(x)
class pair(two_inputs):
    def forward(self, x):
        return x[:, 0], x[:, :, 0]
class nan(two_inputs):
    def forward(self, x):
        return nn.Sequential.forward(self, x) / 0
"""


@prints(
    "cli/replay.py:_read: pwoa",
    "files/plain.py:read_toml",
    "cli/replay.py:_read: Name",
    "cli/replay.py:_options: Did",
    "cli/replay.py:_options: There",
    "cli/replay.py:_options: As",
    JOB + "prepare: Fetch",
)
def configurations(tool):
    (run,) = Path("pwoa-runs").glob("*")
    words = ["prune", "--config", "c.toml", *TINY, "--dry-run"]
    assert "--config pwoa-runs/RUN/config.toml" in tool.refused(*words)
    Path("c.toml").write_text("lr =")
    tool.follow(words, "--config pwoa-runs/RUN/config.toml", f"--config {run}/config.toml")
    Path("c.toml").write_text("lr = 1")
    hint = tool.refused(*words)
    Path("c.toml").write_text("\n".join(line[4:] for line in hint.partition("\n\n")[2].splitlines()))
    tool.works(*words)
    table = Path("c.toml").read_text()
    Path("c.toml").write_text(table.replace("sparsity", "sparsty"))
    near = tool.refused(*words).removeprefix("Did you mean ").rstrip("?")
    Path("c.toml").write_text(table.replace("sparsity", near))
    tool.works(*words)
    Path("c.toml").write_text(table + "\nxyz = 1")
    assert "sparsity" in tool.refused(*words).removeprefix("There are ").rstrip(".").split(", ")
    Path("c.toml").write_text("[command]\nmodel = {}")
    tool.refused(*words)
    small.save(small.learn(small.lenet()), "model.pt")
    config = [*words[:2], f"{run}/config.toml", "--dry-run"]
    assert "pwoa prune MODEL --config FILE" in tool.refused(*config)
    tool.works("prune", "model.pt", *config[1:])


@prints(
    "files/run_folder.py:check_finished: Name",
    FINISHED + "read: Measure",
    FINISHED + "teacher_source",
    FINISHED + "data",
    "files/plain.py:read_json: Name",
    "reports/schema.py:validate",
    "reports/schema.py:read",
    "reports/schema.py:check",
)
def runs_that_are_none_or_changed(tool):
    (run,) = Path("pwoa-runs").glob("*")
    tool.refused("eval", ".", "--attacks", "fgsm")
    tool.works("eval", run, "--n", "20", "--attacks", "fgsm")
    Path("tiny.npz").rename("moved.npz")
    tool.follow(["eval", run, "--n", "20", "--attacks", "fgsm"], "--data FILE", "--data moved.npz")
    Path("moved.npz").rename("tiny.npz")
    two = Path("two runs")
    shutil.copytree(run, two)
    shutil.copy("model.pt", two / "model.safetensors")
    words = tool.refused("eval", two, "--attacks", "fgsm").partition("pwoa ")[2]
    shutil.copy(run / "model.safetensors", two / "model.safetensors")
    tool.works(*shlex.split(words), *TINY, "--attacks", "fgsm")
    shutil.copy("model.pt", "first.pt")
    small.save(small.learn(small.lenet()), "model.pt")
    assert "--compare FILE" in tool.refused("eval", run, "--n", "20", "--attacks", "fgsm")
    tool.works("eval", run, "--n", "20", "--attacks", "fgsm", "--compare", "first.pt")
    whole = json.loads((run / "report.json").read_text())
    for content in (
        "{",
        "[]",
        json.dumps(whole | {"schema_version": 9}),
        "{}",
        json.dumps({k: v for k, v in whole.items() if k != "threat"}),
    ):
        (two / "report.json").write_text(content)
        hint = tool.refused("report", two)
        if "pwoa eval MODEL" in hint:
            tool.works(*EVAL)
    tool.works(*PRUNE)


@prints(
    "training/loop.py:run: Limit",
    "training/loop.py:run: The",
    "errors.py:of_system",
    "cli/faults.py:of: A smaller",
    "cli/faults.py:of: Close",
)
def runs_that_broke(tool):
    for raised in (OSError(28, "No space left on device", "disk"), MemoryError(),
                   ImportError("libtorch_cpu.so: failed to map segment from shared object")):
        with tool.patch.context() as patch:
            patch.setattr("pwoa_cli.workflows.prune_job.prepare", raises(raised))
            tool.refused(*PRUNE, code=4)
    tool.works(*PRUNE, "--batch-size", "8", "--device", "cpu")
    words = [*PRUNE, "--set", "lr=1e9", "--set", "clip=0"]
    hint = tool.refused(*words, code=4)
    for setting in ("--set clip=5", "--set lr=1e-4"):
        assert setting in hint
        tool.works(*followed(PRUNE, setting))
    with tool.patch.context() as patch:
        patch.setattr("pwoa_cli.pruning.admm.penalty", lambda *_: torch.tensor(torch.inf, requires_grad=True))
        words = [*PRUNE, "--set", "method=admm", "--set", "allocation=uniform"]
        hint = tool.refused(*words, code=4)
    tool.works(*followed(words, hint))
