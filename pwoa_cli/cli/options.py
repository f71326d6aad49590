"""The options of the command line: their names, help and the text that they take."""
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pwoa_cli.cli import faults, streams
from pwoa_cli.errors import InputError
from pwoa_cli.files.run_folder import model_of
from pwoa_cli.workflows.search import size_bytes

if TYPE_CHECKING:
    from pwoa_cli.checkpoints.model import Source
    from pwoa_cli.data.choices import Choices


TYPED = "pwoa.typed"  # where the words of the command line lie in a context


class Command(TyperCommand):
    """Help as plain text, options under the headings of their `rich_help_panel`, all in one column."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with stdout for its result alone. No command of ours calls sys.exit: other code
        may."""
        try:
            with streams.apart():
                return super().invoke(ctx)
        except (SystemExit, EOFError) as error:  # the second is Ctrl-C to click
            raise faults.of(error) from error

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer; what was typed stays in the context, for options that decide what others are."""
        ctx.meta[TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """MODEL or [MODEL], without the braces of newer typers."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options by heading, in the order of the function's parameters."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue  # hidden
            name, text = record
            argument = param.param_type_name == "argument"
            heading = "Arguments" if argument else getattr(param, "rich_help_panel", None) or RUN
            groups.setdefault(heading, []).append((param.metavar if argument and param.metavar else name,
                                                   text))
        width = max(len(name) for records in groups.values() for name, _ in records)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])


def _whole(flag: str, least: int, such_as: int = 100, *, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Parser of a whole number from least to most. It raises InputError naming the flag and an example."""
    def parse(text: Any) -> int:
        digits = str(text).strip()
        number = int(digits) if digits.isdecimal() and len(digits) <= 20 else -1
        if not least <= number <= most:
            limit = f" and at most {most}" if digits.isdecimal() and number not in range(least) else ""
            raise InputError(f"{flag} {digits[:40]} is not a whole number of at least {least}{limit}.",
                             hint=f"For example: {flag} {such_as}")
        return number

    return parse


def _bytes(flag: str, example: str) -> Callable[[Any], int]:
    """Parser of 8GB, 500k or 300000 as bytes. It raises InputError naming the flag."""
    def parse(text: Any) -> int:
        return size_bytes(str(text), flag=flag, example=example)

    return parse


def _seconds(flag: str) -> Callable[[Any], float]:
    """Parser of a number above 0. It raises InputError naming the flag."""
    def parse(text: Any) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise InputError(f"{flag} {text} is not a number above 0.", hint=f"Ten minutes: {flag} 600")
        return value

    return parse


PRUNING, MODEL, DATA, RUN = "Pruning", "Model", "Data and attacks", "Run"


def _option(flag: str, heading: str, text: str, *, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(flag, rich_help_panel=heading, help=text, metavar=metavar, **more)


Model = Annotated[str, typer.Argument(
    metavar="MODEL", help="Checkpoint: .pt, .pth or .safetensors, timm:NAME or hf-hub:ID.")]
Sparsity = Annotated[str | None, _option(
    "--sparsity", PRUNING, "Fraction of weights to zero, between 0 and 1.", metavar="S")]
MaxLoss = Annotated[str | None, _option(
    "--max-loss", PRUNING, "Or: zero as many as cost at most so many points of the worst case, on training "
                           "images held out.", metavar="POINTS")]
HeldOut = Annotated[int | None, _option(
    "--held-out", PRUNING, "How many, for --max-loss. Default: as many as --samples, at most a fifth.",
    metavar="N", parser=_whole("--held-out", 2))]
Channels = Annotated[str | None, _option(
    "--channels", PRUNING, "Or the fraction of channels to remove.", metavar="F")]
Macs = Annotated[str | None, _option(
    "--macs", PRUNING, "Or the fraction of multiplications to remove, by whole channels.", metavar="F")]
Structure = Annotated[str | None, _option(
    "--structure", PRUNING, "unstructured, filter, column, block:RxC, or channel (coupled, removable). "
                            "Default: channel with --channels or --macs, else unstructured.",
    metavar="KIND")]
Neighbours = Annotated[str | None, _option(
    "--nm", PRUNING, "Or how many of how many neighbours stay, everywhere alike: 2:4.", metavar="N:M")]
TargetBytes = Annotated[int | None, _option(
    "--target-bytes", PRUNING, "Or as many zeros as bring the file to so many bytes.", metavar="500k",
    parser=_bytes("--target-bytes", "500k"))]
RecipeName = Annotated[str,
                       _option("--recipe", PRUNING, "default, paper, or a TOML file.", metavar="NAME|FILE")]
Settings = Annotated[list[str] | None, _option(
    "--set", PRUNING, "Override a field of the recipe, such as lr=1e-3 (repeatable).", metavar="FIELD=VALUE")]
Epochs = Annotated[str | None, _option(
    "--epochs", PRUNING,
    "Epochs of both phases together. Default: the recipe's; those of recipe default are "
    "10 at 90% sparsity, 20 at 99%, 5 up to 68%.", metavar="E")]
Effort = Annotated[str | None, _option(
    "--effort", PRUNING,
    "quick, default or max: a fifth of the recipe's epochs, these, or five times as many. --epochs wins.",
    metavar="KIND")]
MixRatio = Annotated[str | None, _option(
    "--mix-ratio", PRUNING, "Partial access: attack this fraction of the training batches. Default: none.",
    metavar="R")]
TrainingBatch = Annotated[str | None, _option(
    "--batch-size", PRUNING, "Images in a training step. Default: the recipe's.", metavar="B")]
Arch = Annotated[str | None, _option(
    "--arch", MODEL, "Architecture, where the file does not tell.", metavar="NAME|FILE.py:FN")]
Teacher = Annotated[str | None,
                    _option("--teacher", MODEL, "Another checkpoint with the same classes.", metavar="FILE")]
Compare = Annotated[str | None, typer.Option(
    "--compare", "--teacher", rich_help_panel=MODEL, metavar="FILE",
    help="Another checkpoint with the same classes, on the same samples.")]
Classes = Annotated[int | None, _option(
    "--num-classes", MODEL, "Classes of the model.", metavar="K", parser=_whole("--num-classes", 2, 10))]
Normalize = Annotated[str | None, _option(
    "--normalize", MODEL,
    "Normalisation by name: none, imagenet, cifar10, cifar10-old, cifar100, svhn, half, mnist, "
    "fashion-mnist.", metavar="NAME")]
Mean = Annotated[str | None,
                 _option("--mean", MODEL, "Or its mean, for inputs in [0,1].", metavar="A,B,C")]
Std = Annotated[str | None, _option("--std", MODEL, "And its deviation.", metavar="A,B,C")]
Entry = Annotated[str | None, _option(
    "--entry", MODEL, "Which of several models in the file, such as best.", metavar="NAME")]
Keep = Annotated[str | None, _option(
    "--keep", MODEL, "Fraction of weights that pruning scores in the file keep.", metavar="F")]
Trust = Annotated[bool, _option("--trust-pickle", MODEL,
                                "Run code that the file holds, if it needs that to be read.")]
MaxMemory = Annotated[int | None, _option(
    "--max-memory", MODEL, "Most memory that what a file holds, or the network of its name, may take. "
                           "Default: 80% of what is free.", metavar="8GB",
    parser=_bytes("--max-memory", "8GB"))]
Data = Annotated[str | None, _option(
    "--data", DATA, "mnist, fashion-mnist, cifar10, cifar100, svhn, a folder or an .npz file. Default: the "
                    "known one that fits.",
    metavar="NAME|PATH")]
InfoData = Annotated[str | None, _option(
    "--data", DATA, "Also try it on training images of mnist, cifar10, ..., a folder or an .npz file.",
    metavar="NAME|PATH")]
ImageSize = Annotated[str | None, _option(
    "--image-size", DATA, "Size to which pictures of a folder are scaled, 224 or 192x256. Default: the "
                          "network's or their own.", metavar="N|HxW")]
ClassMap = Annotated[str | None, _option(
    "--class-map", DATA, "Class number of each folder: lines FOLDER NUMBER, or JSON.", metavar="FILE")]
ClassOrder = Annotated[str | None, _option(
    "--class-order", DATA, "Order of folders whose names are numbers: text (0, 1, 10, 2) or number.",
    metavar="text|number")]
LabelsFrom = Annotated[int, _option(
    "--labels-from", DATA, "Least label of an .npz file, which is class 0.", metavar="N",
    parser=_whole("--labels-from", 0, 1))]
Logits = Annotated[str, _option(
    "--logits", DATA, "Classes among which the model decides: all of its own, or those of the data only.",
    metavar="all|data")]
Norm = Annotated[str | None, _option("--norm", DATA, "Norm of the threat model.", metavar="linf|l2|l1")]
Eps = Annotated[str | None, _option(
    "--eps", DATA, "Its radius, such as 8/255 or 0.3, for inputs in [0,1]. Default: the file's, else the "
                   "data set's convention.",
    metavar="E")]
ReportAttacks = Annotated[str, _option("--attacks", DATA, "Attacks of the report.", metavar="A,B")]
Attacks = Annotated[str, _option(
    "--attacks", DATA,
    "fgsm, pgd, pgd-K, cw, cw-K, apgd-ce, apgd-t, fab-t, square, aa (AutoAttack), aa-fast (its first two: an "
    "upper bound), aa-mixed (searched in bfloat16), strong (aa, then restarts), restarts, fmn, cw-l2, or a "
    "plug-in.", metavar="A,B")]
N = Annotated[int, typer.Option("--samples", "--n", rich_help_panel=DATA, metavar="N",
                                help="Test samples, stratified by class.", parser=_whole("--samples", 1))]
PassBatch = Annotated[int | None, _option(
    "--batch-size", RUN,
    "Most images in one pass; results do not depend on it. Default: what fits into memory.", metavar="B",
    parser=_whole("--batch-size", 1))]
PerClass = Annotated[bool, _option("--per-class", DATA, "Also accuracy by class.")]
Curve = Annotated[str | None, _option(
    "--curve", DATA, "Also accuracy over eps: the attacks at these radii too.", metavar="E,E,...")]
SaveSamples = Annotated[Path | None, _option(
    "--save-samples", RUN, "Flags, norms and adversarial inputs of every sample, for NumPy.",
    metavar="FILE.npz")]
MaxSeconds = Annotated[float | None, _option(
    "--max-seconds", RUN, "Stop the attacks after this time with what is known.", metavar="S",
    parser=_seconds("--max-seconds"))]
CheckpointEvery = Annotated[float, _option(
    "--checkpoint-every", RUN, "Seconds between two states that --resume can go on from, at the least.",
    metavar="S", parser=_seconds("--checkpoint-every"))]
Resume = Annotated[bool, _option("--resume", RUN, "Go on from what an earlier run of this command finished.")]
Seed = Annotated[int, _option("--seed", RUN, "Seed of everything random.", metavar="N",
                              parser=_whole("--seed", 0, 0, most=10**18 - 1))]
Device = Annotated[str, _option("--device", RUN, "auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")]
Compile = Annotated[str, _option(
    "--compile", RUN, "auto, on, off: training steps by torch.compile. auto: long trainings on CUDA.",
    metavar="MODE")]
Deterministic = Annotated[bool, _option(
    "--deterministic", RUN, "The same bytes from the same command: one thread, deterministic algorithms.")]
RunFolder = Annotated[Path | None,
                      _option("--out", RUN, "Run folder. Default: pwoa-runs/MODEL-S-TIME.", metavar="DIR")]
ReportFolder = Annotated[Path | None, _option(
    "--out", RUN, "Also write report.json, report.md and samples.npz here.", metavar="DIR")]
Json = Annotated[bool, _option("--json", RUN, "One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=RUN,
                                     help="Only warnings, errors and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel=RUN, help=(
    "Also why things were inferred, when each line was said, versions, and the causes of an error."))]
DryRun = Annotated[bool, _option("--dry-run", RUN, "Check everything, say what would be done, do nothing.")]


def parse_points(text: str) -> float:
    """--max-loss as a number. Raises: InputError, with what was meant where that can be guessed."""
    example = "One image in a hundred: --max-loss 1"
    try:
        value = float(text.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        raise InputError(f"--max-loss {text} is not a number of points.", hint=example) from None
    if "%" in text or "," in text:
        meant = 0 < value < 100
        raise InputError(f"--max-loss {text} is not a number of points."
                         f"{f' Did you mean {value:g}?' * meant}",
                         hint=f"--max-loss {value:g}" if meant else example)
    return value


def overrides(settings: list[str] | None, **direct: Any) -> dict[str, Any]:
    """Fields of the recipe from --set FIELD=VALUE and from options of their own, which win."""
    values: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting} is not FIELD=VALUE.", hint="For example: --set lr=1e-3")
        values[key.strip()] = value.strip().strip("'\"")  # as recipes and hints write text: noise = 'blocks'
    return values | {key: value for key, value in direct.items() if value is not None}


def fraction(text: str | None) -> float | None:
    """--keep as a number in (0, 1]. Raises: InputError."""
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = 0.0
    if value is not None and not 0 < value <= 1:
        raise InputError(f"--keep {text} is not a number above 0 and up to 1.",
                         hint="A tenth of the weights: --keep 0.1")
    return value


@dataclass(frozen=True)
class SourceOptions:
    """What a user says of MODEL: the options of every command that loads one."""

    arch: Arch = None
    num_classes: Classes = None
    normalize: Normalize = None
    mean: Mean = None
    std: Std = None
    entry: Entry = None
    keep: Keep = None
    trust_pickle: Trust = False
    max_memory: MaxMemory = None

    def of(self, model: str) -> "Source":
        """The model of a path or name. Raises: InputError if what is said contradicts itself."""
        from pwoa_cli.checkpoints.model import Source
        from pwoa_cli.checkpoints.normalisation import of_user, parse_numbers
        from pwoa_cli.machine import memory

        memory.limit(self.max_memory)
        mean, std = parse_numbers(self.mean, flag="--mean"), parse_numbers(self.std, flag="--std")
        mean, std = of_user(self.normalize, mean, std)
        return Source(model, arch=self.arch, num_classes=self.num_classes, mean=mean, std=std,
                      entry=self.entry, keep=fraction(self.keep), trust_pickle=self.trust_pickle)

    def of_teacher(self, path: str | None) -> "Source | None":
        """Another checkpoint, of which only its file speaks; None for None."""
        from pwoa_cli.checkpoints.model import Source

        return None if path is None else Source(model_of(path), trust_pickle=self.trust_pickle)


@dataclass(frozen=True)
class DataOptions:
    """What a user says of how --data is read: the options of every command that opens a data set."""

    image_size: ImageSize = None
    class_map: ClassMap = None
    class_order: ClassOrder = None
    labels_from: LabelsFrom = 0

    def choices(self, *, logits: str = "all") -> "Choices":
        """Parsed. Raises: InputError naming the option."""
        if logits not in ("all", "data"):
            raise InputError(f"--logits {logits} is neither all nor data.", hint="--logits data")
        from pwoa_cli.data.choices import Choices

        if self.class_order not in (None, "text", "number"):
            raise InputError(f"--class-order {self.class_order} is neither text nor number.",
                             hint="--class-order number")
        return Choices(image_size=parse_size(self.image_size), class_map=self.class_map,
                       class_order=self.class_order, labels_from=self.labels_from,
                       logits=None if logits == "all" else logits)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """--image-size as (H, W). Raises: InputError."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch(r"0*[1-9]\d{0,4}", side, re.ASCII) for side in sides):
        raise InputError(f"--image-size {text[:40]} is no size of images.",
                         hint="For example: --image-size 224, or height x width: --image-size 192x256")
    return int(sides[0]), int(sides[-1])


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether a parameter was said on the command line: it has not its default, nor what a file says."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def typed(group: Any) -> str:
    """What of a group of options was said, as it can be typed again: " --arch net.py:fn --num-classes 4"; ""
    for nothing."""
    words: list[str] = []
    for f in fields(group):
        value = getattr(group, f.name)
        if value != f.default:
            words += ["--" + f.name.replace("_", "-")] + [shlex.quote(str(value))] * (value is not True)
    return "".join(f" {word}" for word in words)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of each parameter that is a group of options, such as `SourceOptions`, as
    options of its own; the parameter gets them together."""
    own = inspect.signature(command).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    parameters = [one for parameter in own for one in (
        [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
         for f in fields(groups[parameter.name])] if parameter.name in groups else [parameter])]

    @wraps(command)
    def gathered(**values: Any) -> None:
        made = {name: group(**{f.name: values.pop(f.name) for f in fields(group)})
                for name, group in groups.items()}
        command(**made, **values)

    # what typer makes options of
    gathered.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
    gathered.__annotations__ = {p.name: p.annotation for p in parameters}
    return gathered
