"""A terminal as people use it: a screen that wraps and, when its width changes, breaks its lines anew; and a
program that runs in it."""
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

from helpers.cli_world import PACKAGE

TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(.)", re.S)


class Screen:
    """Rows of text, and whether each goes on in the next one. Of escape sequences it knows cursor up and
    erase; colours and the cursor's visibility change no text."""

    def __init__(self, columns):
        self.columns, self.rows, self.wrapped, self.y, self.x = columns, [""], [False], 0, 0

    def write(self, text):
        for arguments, command, character in TOKEN.findall(text):
            if command == "A":
                self.y = max(0, self.y - int(arguments or 1))
            elif command == "K":
                assert arguments == "2"
                self.rows[self.y], self.wrapped[self.y] = "", False
            elif character == "\r":
                self.x = 0
            elif character == "\n":
                self._down()
            elif character:
                self._put(character)
            else:
                assert command in "mhl", command

    def _put(self, character):
        if self.x == self.columns:
            self.wrapped[self.y], self.x = True, 0
            self._down()
        row = self.rows[self.y].ljust(self.x)
        self.rows[self.y] = row[:self.x] + character + row[self.x + 1:]
        self.x += 1

    def _down(self):
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append("")
            self.wrapped.append(False)

    def resize(self, columns):
        """As terminals of today do: what was one line is broken at the new width, the cursor stays on its
        character."""
        lines, cursor = [""], (0, 0)
        for y, (row, goes_on) in enumerate(zip(self.rows, self.wrapped, strict=True)):
            if y == self.y:
                cursor = len(lines) - 1, len(lines[-1]) + self.x
            lines[-1] += row
            if not goes_on:
                lines.append("")
        self.columns, self.rows, self.wrapped = columns, [], []
        for number, line in enumerate(lines[:-1]):
            parts = [line[at:at + columns] for at in range(0, len(line), columns)] or [""]
            if number == cursor[0]:
                part = min(cursor[1] // columns, len(parts) - 1)
                self.y, self.x = len(self.rows) + part, cursor[1] - part * columns
            self.rows += parts
            self.wrapped += [True] * (len(parts) - 1) + [False]

    def lines(self):
        return [row.rstrip() for row in self.rows if row.strip()]


class Terminal:
    """A program in a terminal of its own. `until` reads what it shows; `resize` and `press` are the user."""

    def __init__(self, code, *, columns):
        self.screen = Screen(columns)
        self.side, inside = pty.openpty()
        self.resize(columns)
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "CI", "NO_COLOR")}
        environment |= {"TERM": "xterm", "PYTHONPATH": str(PACKAGE.parent)}
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=inside, stdout=inside,
                                        stderr=inside, env=environment, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(inside)

    def resize(self, columns):
        self.screen.resize(columns)
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def press(self, key):
        os.write(self.side, key.encode())

    def until(self, shown, *, seconds=30.0):
        """Read until that text is on the screen; None: until the program has ended, with its exit code."""
        end = time.monotonic() + seconds
        while shown is None or shown not in "\n".join(self.screen.lines()):
            assert select.select([self.side], [], [], max(0, end - time.monotonic()))[0], self.screen.lines()
            try:
                self.screen.write(os.read(self.side, 65536).decode())
            except OSError:  # the terminal has closed
                assert shown is None, self.screen.lines()
                break
        if shown is None:
            os.close(self.side)
            return self.process.wait()
        return None
