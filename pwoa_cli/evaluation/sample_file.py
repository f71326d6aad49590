"""What an evaluation says of every sample, as an .npz file that NumPy reads.

    index (n,) int64            position in the test set            label (n,) int64
    WHO/correct/ATTACK, WHO/done/ATTACK (n,) bool     WHO: model; teacher, pruned; compared, model; or the
                                                      headings of several. correct is False where
                                                      time ran out before (done is False)
    WHO/distance/ATTACK (n,) float32                  norm of the perturbation, NaN where there is none
    WHO/broken_by (n,) text     the first attack that broke it, "clean" where it was wrong, "" where it holds
    WHO/inputs (n,C,H,W) float32     adversarial inputs in [0,1], clean ones elsewhere; if asked for
"""
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from pwoa_cli.errors import reading
from pwoa_cli.evaluation.results import Evaluation
from pwoa_cli.files.arrays import read_arrays, write_arrays


def save(path: Path, found: Mapping[str, Evaluation], *, index: Tensor, labels: Tensor, inputs: bool) -> None:
    """Write the file, with adversarial inputs or without, whole or not at all. Raises: InputError if it
    cannot be written."""
    arrays = {"index": index.cpu().numpy(), "label": labels.cpu().numpy()}
    for who, evaluation in found.items():
        for name, result in (evaluation | evaluation.partial).items():
            arrays[f"{who}/correct/{name}"] = result.correct.numpy()
            arrays[f"{who}/done/{name}"] = result.done.numpy()
            arrays[f"{who}/distance/{name}"] = result.distance.numpy()
        arrays[f"{who}/broken_by"] = np.array(evaluation.broken_by, dtype=str)
        if inputs and evaluation.inputs is not None:
            arrays[f"{who}/inputs"] = evaluation.inputs.numpy()
    write_arrays(path, arrays, compressed=True)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises: InputError if it is missing, cut short or something else."""
    with reading(path, "samples of an evaluation",
                 hint="Make it again: pwoa eval ... --save-samples FILE.npz"):
        return read_arrays(path)[0]
