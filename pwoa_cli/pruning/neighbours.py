"""The name of N:M sparsity: of every M neighbours N weights stay. No torch: the command line asks before that
is loaded."""
import re


def stay_of(kind: str) -> tuple[int, int] | None:
    """(N, M) of a name such as 2:4, 0 < N < M < 100; None for any other text."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", kind, re.ASCII)
    return (int(found[1]), int(found[2])) if found and int(found[1]) < int(found[2]) else None
