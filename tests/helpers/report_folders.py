"""Folders of runs with all that `pwoa report --html` shows of them, and their pages, without a run behind
them."""
import json

import numpy as np

from helpers.report_samples import STUDENT, TEACHER, evaluation, report, score
from pwoa_cli.files.plain import write_json
from pwoa_cli.reports import collection, dossier, page

MODEL = {"source": "/a/b/lenet.pt", "sha256": "0" * 64, "arch": "lenet5", "num_classes": 10,
         "teacher": "/a/b/lenet.pt", "teacher_sha256": "0" * 64, "file_sha256": "1" * 64}
CURVE = [{"eps": eps, "scores": {who: score(right, right - 0.02, right + 0.02)
                                 for who, right in (("teacher", one), ("pruned", other))}}
         for eps, one, other in ((0.0, 0.97, 0.96), (0.1, 0.9, 0.88), (0.3, 0.6, 0.5))]
BOTH = {who: {"source": f"{who}.pt", "sha256": sha * 64, "arch": "lenet5"}
        for who, sha in (("teacher", "0"), ("pruned", "1"))}
BENCH = {"models": {"model": {"source": "a", "file_bytes": 240_000}, "without zeros": {"source": "a",
                                                                                      "file_bytes": 240_000}},
         "environment": {"device": "cpu", "threads": 1, "torch": "2"}, "conclusion": "No gain.",
         "rows": [{"runtime": "eager", "batch": 1, "milliseconds": {
             name: {"median": 1.25, "low": 1.0, "high": 2.0} for name in ("model", "without zeros")},
             "times_as_fast": {"median": 1.0, "low": 0.9, "high": 1.1}}]}
NASTY = "<img src=x onerror=alert(1)>&amp;</title><script>$x_1$ \x1b[31m\u202e"




def measured(**changes):
    """An evaluation of the run beside its teacher, with a curve."""
    fields = {"teacher": TEACHER, "results": STUDENT, "headings": ("teacher", "pruned"), "models": BOTH,
              "curve": CURVE, "eps": 0.3, "attacks": ["pgd-10", "aa"]}
    return evaluation(**fields | changes)


def samples(path, *, broken=3, n=1000, size=8, channels=1, clean=None):
    """samples.npz of an evaluation of n images: the first `broken` that both have right break pruned only."""
    rng = np.random.default_rng(0)
    images = rng.random((n, channels, size, size), dtype=np.float32) * 0.5 + 0.25
    right = {who: np.arange(n) < round(scores["clean"]["accuracy"] * n)
             for who, scores in (("teacher", TEACHER), ("pruned", STUDENT))}
    by = {who: np.where(flags, "", "clean").astype("<U10") for who, flags in right.items()}
    by["pruned"][:broken] = "pgd-10"
    inputs = {"teacher": images, "pruned": images.copy()}
    inputs["pruned"][:broken] += rng.choice([-0.125, 0.0625], (broken, *images.shape[1:])).astype(np.float32)
    arrays = {f"{who}/inputs": inputs[who] for who in by} | {f"{who}/broken_by": by[who] for who in by}
    arrays |= {f"{who}/correct/clean": right[who] if clean is None else clean for who in by}
    np.savez(path, index=np.arange(n) + 5000, label=np.arange(n) % 10, **arrays)
    return images, inputs["pruned"]


def run_at(folder):
    """A run with all that may lie beside it, at a folder that is made."""
    (folder / "eval").mkdir(parents=True)
    write_json(folder / "report.json", report(model=MODEL))
    write_json(folder / "eval" / "report.json", measured())
    write_json(folder / "bench.json", BENCH)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(
        {"step": n, "epoch": n / 10, "phase": "sparsify" if n < 10 else "finetune", "loss": 1 / n}) + "\n"
        for n in range(1, 20)))
    samples(folder / "eval" / "samples.npz")
    return folder


def html(folder):
    return page.of_one(dossier.opened(folder))


def compared(tmp_path, *, names=("a", "b", "c")):
    for number, name in enumerate(names):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made = report(model=MODEL, size={"dense_bytes": 2_600_000, "file_bytes": 240_000 - 50_000 * number,
                                         "limit_bytes": 238_000})
        made["sparsity"]["achieved"] = 0.9 + 0.03 * number
        write_json(folder / "report.json", made)
    entries = collection.read([str(tmp_path / name) for name in names])
    return page.of_several(collection.together(entries), collection.differences(entries))
