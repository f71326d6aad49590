"""Reports and evaluations with figures to show, without a run behind them."""
import math
from datetime import datetime

from pwoa_cli.evaluation.words import in_points
from pwoa_cli.reports import schema

ENVIRONMENT = {"python": "3.11.7", "torch": "2.15.0+cu132", "pwoa": "0.1.0", "platform": "Linux",
               "cpu_count": 2, "device": "cpu",
               "threads": 2, "seed": 0}
DATA = {"name": "mnist", "where": "examples/data", "n": 1000, "seed": 0}


def score(accuracy: float, low: float, high: float, n: int = 1000) -> dict:
    return {"accuracy": accuracy, "n": n, "ci95": [low, high]}


TEACHER = {"clean": score(0.986, 0.9767, 0.9916), "pgd-10": score(0.936, 0.919, 0.9496),
           "aa": score(0.83, 0.7718, 0.8757, 200)}
STUDENT = {"clean": score(0.987, 0.9779, 0.9924), "pgd-10": score(0.932, 0.9147, 0.946),
           "aa": score(0.82, 0.761, 0.867, 200)}


def drops(teacher: dict, student: dict) -> dict:
    """Points lost in every attack that both have, with the interval of independent samples (Newcombe 1998,
    method 10): all that can be told from scores."""
    lost = {}
    for name in (n for n in teacher if n in student):
        t, (t_low, t_high) = teacher[name]["accuracy"], teacher[name]["ci95"]
        s, (s_low, s_high) = student[name]["accuracy"], student[name]["ci95"]
        lost[name] = in_points(t - s, (t - s - math.hypot(t - t_low, s_high - s),
                                       t - s + math.hypot(t_high - t, s - s_low)))
    return lost


def report(**changes) -> dict:
    fields = {
        "created": datetime(2026, 3, 4, 5, 6, 7), "norm": "linf", "eps": 0.3, "target": 0.9,
        "structure": "unstructured",
        "model": {"source": "/a/b/lenet.pt", "sha256": "0" * 64, "arch": "lenet5", "num_classes": 10},
        "layers": [{"name": "conv1.weight", "shape": (32, 1, 3, 3), "nonzero": 88, "total": 288},
                   {"name": "linear1.weight", "shape": (200, 3136), "nonzero": 62661, "total": 627200}],
        "size": {"dense_bytes": 2_600_000, "file_bytes": 240_000, "limit_bytes": 238_000},
        "macs": {"dense": 5_200_000, "nonzero": 812_345},
        "teacher": TEACHER, "student": STUDENT,
        "seconds": {"load": 0.84, "sparsify": 43.2, "evaluate": 101.0},
        "environment": ENVIRONMENT, "recipe": {"name": "default", "epochs": 4.0}, "data": DATA,
        "notes": ["a note on [x]"]}
    fields |= changes
    return schema.build(**{"drop": drops(fields["teacher"], fields["student"])} | fields)


def evaluation(**changes) -> dict:
    fields = {"norm": "linf", "eps": 8 / 255, "results": STUDENT, "seconds": {"aa": 12.0},
              "environment": ENVIRONMENT,
              "data": DATA, "model": "lenet.pt"}
    fields |= changes
    drop = drops(fields["teacher"], fields["results"]) if fields.get("teacher") else None
    return schema.build_eval(**{"drop": drop} | fields)
