"""Agreement of every attack with its reference, sample by sample: pyautoattack's own run, and foolbox 3.3.

    .venv/bin/python examples/benchmarks/agreement.py CHECKPOINT --norm l2 --eps 1.5 --samples 20

The first n test images that the model gets right, one thread, no cheap attack before another. `broken` is
asked of the model for the answer moved into [0,1] and the ball; for the minimum-norm attacks it means broken
within eps, and the ratio is the median of norms (pwoa / reference) where both found something. fgsm, pgd and
cw run in float64, as the sign of a tiny gradient is noise in float32; pgd and cw without random start, up to
the first misclassified iterate of each side. In l2 and l1 pwoa's AutoAttack gives the reference's points; in
linf it searches on the `quick` copy, where float32 rounds otherwise and a search may end elsewhere, as the
reference's own does beside other images.
"""
import argparse
import warnings
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import pwoa_cli
from pwoa_cli.attacks import autoattack, base, gradient, minimum_norm
from pwoa_cli.data import datasets

STEPS = 20
ATTACKS = ("fgsm", "pgd", "cw", "fmn", "fmn-paper", "cw-l2", "apgd-ce", "apgd-t", "fab-t", "square", "aa")
MINIMUM_NORM = ("fmn", "fmn-paper", "cw-l2")
TITLE = {"linf": "Linf", "l2": "L2", "l1": "L1"}
BEYOND = "ours goes just beyond the linearised boundary and leaves out pixels that the box holds"
NOTES = {("fgsm", "l1"): "ours is the steepest step in l1, foolbox's goes along the gradient",
         ("pgd", "l1"): "as fgsm in l1",
         ("cw", "l1"): "as fgsm in l1", ("fmn", "linf"): "ours steps along the sign", ("fmn", "l1"): BEYOND,
         ("fmn", "l2"): "foolbox's l2 ball never shrinks: it divides a norm by itself",
         ("fmn-paper", "l2"): "as fmn in l2"}


@dataclass(frozen=True)
class Case:
    """What both sides are asked: images x (n,C,H,W) that the model gets right, labels y, a ball and a
    seed."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    norm: str
    seed: int

    def generator(self) -> torch.Generator:
        """A new one for each side, so that both draw the same."""
        return torch.Generator().manual_seed(self.seed)

    def broken(self, adv: Tensor, *, any_size: bool = False) -> Tensor:
        """(n,) bool: misclassified in the box, and in the ball unless any_size."""
        adv = base.contain(adv, self.x, eps=float("inf") if any_size else self.eps, norm=self.norm)
        with torch.no_grad():
            return base.wrong(self.model(adv), self.y)


def ours(name: str, case: Case) -> Tensor:
    """The answer of pwoa."""
    ball = {"eps": case.eps, "norm": case.norm, "generator": case.generator()}
    given = (case.model, case.x, case.y)
    if name == "fgsm":
        return gradient.fgsm(*given, **ball)
    if name in ("pgd", "cw"):
        return gradient.pgd(*given, **ball, steps=STEPS, random_start=False,
                            loss="ce" if name == "pgd" else "margin")
    if name in MINIMUM_NORM:
        return (minimum_norm.cw_l2(*given) if name == "cw-l2"
                else minimum_norm.fmn(*given, **ball, as_published=name != "fmn"))
    return getattr(autoattack, name.replace("-", "_"))(*given, **ball)


def pyautoattack(name: str, case: Case) -> Tensor:
    """Its own evaluation with its standard settings, restricted to the component; `aa`: all four."""
    run = AutoAttack(case.model, norm=TITLE[case.norm], eps=case.eps,
                     seed=autoattack.drawn_seed(case.generator()), version="standard")
    run.attacks_to_run = list(autoattack.STANDARD) if name == "aa" else [name]
    return run.run_standard_evaluation(case.x, case.y, batch_size=250)[0]


def foolbox_answer(name: str, case: Case) -> Tensor:
    """Foolbox; for pgd and cw the first misclassified iterate, as foolbox returns the last."""
    import foolbox
    import foolbox.attacks as fa

    title, seen = TITLE[case.norm].replace("Linf", "LInf" if name.startswith("fmn") else "Linf"), []
    if name == "cw-l2":
        attack = fa.L2CarliniWagnerAttack(binary_search_steps=9, steps=200, stepsize=0.05, initial_const=0.1)
    elif name.startswith("fmn"):
        attack = getattr(fa, f"{title}FMNAttack")(steps=100)
    elif name == "fgsm":
        attack = getattr(fa, f"{title}FastGradientAttack")(random_start=False)
    else:
        attack = getattr(fa, f"{title}PGD")(abs_stepsize=case.eps / gradient.STEP_FRACTION, steps=STEPS,
                                            random_start=False)
    # foolbox has no PGD on the margin: its PGD with this loss, by the method that it leaves to users
    if name == "cw":
        attack.get_loss_fn = lambda model, labels: lambda x: type(x)(gradient.margin(model(x).raw,
                                                                                     labels.raw).sum())
    watched = case.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    options = {} if name in MINIMUM_NORM else {"epsilon": case.eps}
    model = foolbox.PyTorchModel(case.model, bounds=(0, 1), device="cpu")
    last = attack.run(model, case.x, foolbox.criteria.Misclassification(case.y), **options).detach()
    watched.remove()
    if name not in ("pgd", "cw"):
        return last
    for adv in reversed(seen):
        last = torch.where(base.per_sample(case.broken(adv), adv), adv, last)
    return last


def compare(name: str, case: Case) -> str:
    """A row of the table."""
    foreign = name in (*autoattack.STANDARD, "aa")
    answers = ours(name, case), (pyautoattack if foreign else foolbox_answer)(name, case)
    left, right = (case.broken(adv) for adv in answers)
    difference, ratio = f"{float((answers[0] - answers[1]).abs().max()):.0e}", ""
    if name in MINIMUM_NORM:
        found = case.broken(answers[0], any_size=True) & case.broken(answers[1], any_size=True)
        sizes = [base.distance(adv - case.x, case.norm)[found] for adv in answers]
        difference, ratio = "", f"{float((sizes[0] / sizes[1]).median()):.3f} ({int(found.sum())})"
        inside = [base.distance(adv - case.x, case.norm) <= case.eps for adv in answers]
        left, right = (case.broken(adv, any_size=True) & near
                       for adv, near in zip(answers, inside, strict=True))
    counts = [int(part.sum()) for part in (left & right, left & ~right, right & ~left)]
    return (f"| {name} | {'pyautoattack' if foreign else 'foolbox'} | {len(case.x)} | {counts[0]} | "
            f"{counts[1]} | {counts[2]} | {'yes' if torch.equal(left, right) else 'no'} | {difference} | "
            f"{ratio} | {NOTES.get((name, case.norm), '')} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--samples", "--n", dest="n", type=int, default=20)
    parser.add_argument("--norm", choices=base.NORMS, default="linf")
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--attacks", default="",
                        help=f"of {','.join(ATTACKS)}; all that know the norm unless given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # foolbox and eagerpy use what NumPy and Python are about to drop
    model = pwoa_cli.load(args.checkpoint).requires_grad_(False)
    x, y = datasets.load(args.data).test.batch(torch.arange(args.n))
    right = ~base.wrong(model(x), y)
    x, y = x[right], y[right]
    print(f"{args.n} images of {args.data}, {len(x)} right when clean; {args.norm} eps {args.eps:g}, seed "
          f"{args.seed}")
    print("| attack | reference | attacked | broken by both | only by pwoa | only by the reference | flags "
          "equal | largest difference of a pixel | norm ratio (samples) | remark "
          "|\n|---|---|---|---|---|---|---|---|---|---|")
    for name in args.attacks.split(",") if args.attacks else [a for a in ATTACKS if a != "cw-l2"
                                                              or args.norm == "l2"]:
        wide = name in ("fgsm", "pgd", "cw")
        case = Case(model.double() if wide else model.float(), x.double() if wide else x, y, args.eps,
                    args.norm, args.seed)
        print(compare(name, case), flush=True)


if __name__ == "__main__":
    main()
