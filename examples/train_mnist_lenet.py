"""Adversarially train the bundled MNIST LeNet: PGD at Linf 0.3 (Madry et al. 2018, eq. 2.1), seeded.

    .venv/bin/python examples/train_mnist_lenet.py --out examples/mnist_lenet_linf0.3.pt 2>&1 | tee
    examples/train_mnist_lenet.log

eps and the attack's step grow linearly over the first epochs (from eps = 0 at once, a LeNet at 0.3 learns
nothing); Adam with a cosine learning rate; the released weights are an exponential moving average. 5,000
training images are held out to watch robustness while training; the test set is touched once, at the end.
About 30 minutes on 2 idle cores.
"""
import argparse
import pathlib
import time

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pwoa_cli.data import datasets
from pwoa_cli.networks.families.small import LeNet

EPS, RAMP_EPOCHS, HELD_OUT, BATCH = 0.3, 4, 5000, 128


def pgd(model, x, y, *, eps, alpha, steps, generator, bf16):
    """Projected gradient ascent on the cross entropy from a uniform random start; x, result in [0,1]."""
    adv = (x + torch.empty_like(x).uniform_(-eps, eps, generator=generator)).clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(adv).float(), y, reduction="sum")
        grad, = torch.autograd.grad(loss, adv)
        adv = torch.min(torch.max(adv.detach() + alpha * grad.sign(), x - eps), x + eps).clamp(0, 1)
    return adv


def accuracy(model, x, y, *, attack=None) -> float:
    """Fraction in 0..1 of right answers over (N, ...) images, under attack(x, y) when one is given."""
    model.eval()
    right = 0
    for start in range(0, len(x), 500):
        xb, yb = x[start:start + 500], y[start:start + 500]
        xb = attack(model, xb, yb) if attack else xb
        with torch.no_grad():
            right += (model(xb).argmax(1) == yb).sum().item()
    return right / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="PGD steps while training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true",
                        help="search in float32 too (default: bfloat16 search)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    bf16 = not args.float32
    mnist = datasets.load(str(args.data))
    x, y = mnist.train.batch(torch.arange(len(mnist.train)))
    x, x_val, y, y_val = x[HELD_OUT:], x[:HELD_OUT], y[HELD_OUT:], y[:HELD_OUT]
    model = LeNet().to(memory_format=torch.channels_last)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.epochs * batches,
                                                   pct_start=0.2)

    def pgd_20(net, xb, yb):
        return pgd(net, xb, yb, eps=EPS, alpha=0.03, steps=20, generator=generator, bf16=False)

    started = time.time()
    for epoch in range(args.epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for b in range(batches):
            xb, yb = x[order[b * BATCH:(b + 1) * BATCH]], y[order[b * BATCH:(b + 1) * BATCH]]
            eps = EPS * min(1.0, (epoch + b / batches) / RAMP_EPOCHS)
            adv = pgd(model, xb, yb, eps=eps, alpha=2.5 * eps / args.steps, steps=args.steps,
                      generator=generator, bf16=bf16)
            loss = F.cross_entropy(model(adv), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            ema.update_parameters(model)
            total += loss.item()
        print(f"epoch {epoch + 1}/{args.epochs} | loss {total / batches:.4f} | held-out clean "
              f"{accuracy(ema, x_val, y_val):.4f} | held-out PGD-20 (1000) "
              f"{accuracy(ema, x_val[:1000], y_val[:1000], attack=pgd_20):.4f} | {time.time() - started:.0f} "
              "s", flush=True)

    torch.save({k: v.contiguous() for k, v in ema.module.state_dict().items()}, args.out)
    x_test, y_test = mnist.test.batch(torch.arange(len(mnist.test)))

    def pgd_40(net, xb, yb):
        return pgd(net, xb, yb, eps=EPS, alpha=0.01, steps=40, generator=generator, bf16=False)

    print(f"test, 10,000 images: clean {accuracy(ema, x_test, y_test):.4f} | "
          f"PGD-40 (Linf 0.3, step 0.01, random start) {accuracy(ema, x_test, y_test, attack=pgd_40):.4f} | "
          f"{time.time() - started:.0f} s")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB), torch {torch.__version__}, seed "
          f"{args.seed}")


if __name__ == "__main__":
    main()
