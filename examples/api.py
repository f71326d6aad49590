"""Prune a robust checkpoint and measure it, from Python.

    python examples/api.py MODEL DATA            # such as examples/mnist_lenet_linf0.3.pt examples/data
"""
import sys

import pwoa_cli


def main(model: str, data: str, **options) -> None:
    run = pwoa_cli.prune(model, 0.9, data=data, say=print, **options)
    print(f"{run.model}: clean {run.scores['clean'].accuracy:.3f}, worst case {run.worst.accuracy:.3f} "
          f"(teacher {run.teacher['clean'].accuracy:.3f})")
    again = pwoa_cli.evaluate(run.folder, attacks="pgd,cw", samples=options.get("samples", 1000))
    print("\n".join(again.unreliable) or f"pgd-20 {again.scores['pgd-20'].accuracy:.3f}, no doubts")
    network = pwoa_cli.load(run.model)  # a torch.nn.Module: inputs (B, C, H, W) in [0,1], logits out
    print(f"{sum(p.count_nonzero() for p in network.parameters()):,} parameters are not zero")


if __name__ == "__main__":
    main(*sys.argv[1:])
