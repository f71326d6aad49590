"""Whatever a command raises, as one sentence and an exit code: the machine's fault, other people's code's, or
ours. A traceback is never the answer."""
import os
import sysconfig
import traceback
from pathlib import Path

import pwoa_cli
from pwoa_cli.errors import MORE_MEMORY, InputError, PwoaError, is_out_of_memory, of_system

OURS = str(Path(pwoa_cli.__file__).parent) + os.sep
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def of(error: BaseException) -> PwoaError:
    """The error to show for anything that a command raises."""
    if isinstance(error, PwoaError):
        return error
    if is_out_of_memory(error):  # before torch is imported here: it may be what there is no memory for
        return PwoaError(f"Out of memory: {str(error).splitlines()[0] if str(error) else 'on the CPU'}",
                         hint=MORE_MEMORY if isinstance(error, ImportError | OSError) else
                         "A smaller --batch-size, or another --device.")
    if isinstance(error, RuntimeError):
        from pwoa_cli.machine.determinism import is_refusal

        if is_refusal(error):
            return InputError(f"--deterministic: {str(error).partition('.')[0]}.",
                              hint="Leave --deterministic out, or: --device cpu")
    if isinstance(error, OSError):
        return of_system(error)
    if frames := _of_others(error):
        return InputError(f"{_place(frames[-1])} raises {_told(error)}.",
                          hint="pwoa calls a network as net.eval()(images): mend it there, or name another "
                               "with --arch.")
    if isinstance(error, SystemExit):
        return InputError(f"Code that the checkpoint brought ended the program: {_told(error)}.",
                          hint="Load it where it was made, and save its state_dict() alone.")
    ours = [_place(frame) for frame in _frames(error) if frame.filename.startswith(OURS)][-3:]
    return PwoaError(f"pwoa itself broke: {_told(error)} ({', from '.join(reversed(ours))}).",
                     hint="Please report this sentence, with the command and the checkpoint.")


def _of_others(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of code that is neither pwoa's nor a library's."""
    return [frame for frame in _frames(error) if not frame.filename.startswith((OURS, *LIBRARIES, "<"))]


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames within pwoa and what it called."""
    frames = list(traceback.extract_tb(error.__traceback__))
    first = next((i for i, frame in enumerate(frames) if frame.filename.startswith(OURS)), 0)
    return frames[first:]


def _place(frame: traceback.FrameSummary) -> str:
    own = frame.filename.startswith(OURS)
    name = frame.filename[len(OURS):] if own else Path(frame.filename).name
    return f"{name}, line {frame.lineno}, in {frame.name}"


def _told(error: BaseException) -> str:
    """Kind and first line of the words."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0].rstrip('.')}" if lines else "")
