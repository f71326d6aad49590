"""What a run needs to go on, kept in its folder at intervals: state.pt, written at once or not at all.

Keeping takes at most SHARE of the time: what takes long to write is written less often.
"""
import json
import pickle
import shlex
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from pwoa_cli.errors import InputError, PwoaError
from pwoa_cli.files.atomic import atomic
from pwoa_cli.files.plain import dumps
from pwoa_cli.files.run_folder import STATE

FORMAT = 1
SHARE = 0.02
SECONDS = 60.0


class Keeper:
    """The state of a run in its folder: a dictionary of tensors, numbers, texts, lists and dictionaries.

    Args: of: what the run is of, plain values; a state of something else is refused. every: seconds between
    two states, at the least. warn: gets a sentence where nothing can be written: a run can do without.
    """

    def __init__(self, folder: Path, *, of: Mapping[str, Any], every: float = SECONDS,
                 warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.path, self._every, self._warn, self._clock = folder / STATE, every, warn, clock
        self._of = sha256(json.dumps(json.loads(dumps(of)), sort_keys=True).encode()).hexdigest()
        self._next, self._warned = clock() + every, False

    @property
    def due(self) -> bool:
        """Whether it is time to keep a state."""
        return self._clock() >= self._next

    def keep(self, state: Mapping[str, Any]) -> bool:
        """Put a state in the place of the one before. Returns: whether that went well; a warning says why
        not, once."""
        start, why = self._clock(), ""
        try:
            with atomic(self.path) as temporary, open(temporary, "wb") as file:
                torch.save({"format": FORMAT, "of": self._of, "state": dict(state)}, file)
        except PwoaError as error:
            why = error.message
        except RuntimeError as error:  # torch says some full disks in its own words
            why = f"{self.path} cannot be written: {error}"
        now = self._clock()
        self._next = now + max(self._every, (now - start) / SHARE)
        if why and not self._warned:
            self._warn(f"warning: the run cannot be kept to go on from: {why.splitlines()[0]}")
        self._warned = bool(why)
        return not why

    def kept(self) -> dict[str, Any] | None:
        """The state that is there, its tensors on the CPU; None for none. Raises: InputError if it cannot be
        read or is of something else."""
        begin = f"Remove {shlex.quote(str(self.path))}, and the run begins again from its first step."
        try:
            found = torch.load(self.path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{self.path} cannot be read: {(str(error) or 'it is empty').splitlines()[0]}.",
                             hint=begin) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("of") != self._of:
            raise InputError(f"{self.path} is of another run, or of another version of pwoa.", hint=begin)
        return found["state"]

    def clear(self) -> None:
        """The run is over: what was kept is no longer needed."""
        self.path.unlink(missing_ok=True)
