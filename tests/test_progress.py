"""The progress of a job: a bar for a terminal, lines for a log file."""

import io
import sys

import pytest

from ddpm_jax import progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_log_file_gets_a_line_every_half_a_minute(clock, capsys):
    """1000 steps of one second print 34 lines without carriage returns, the last at the end."""
    with progress.bar(1000, unit="steps") as bar:
        for _ in range(1000):
            clock.now += 1.0
            bar.set_postfix_str("loss 0.5")
            bar.update()
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == "30 of 1000 steps, 0:00:30 gone, 0:16:10 to go: loss 0.5"
    assert lines[-2:] == ["1000 of 1000 steps, 0:16:40 gone: loss 0.5", ""]
    assert len(lines) == 33 + 1 + 1


def test_what_is_left_is_counted_from_what_this_process_did(clock, capsys):
    """A job resumed at 900 of 1000, at one step a second."""
    bar = progress.bar(1000, unit="steps", initial=900, leave=False)
    clock.now = 50.0
    bar.update(50)
    bar.close()
    assert capsys.readouterr().err == "950 of 1000 steps, 0:00:50 gone, 0:00:50 to go\n"


def test_short_jobs_and_other_processes_say_nothing(clock, capsys):
    with progress.bar(10, unit="images", leave=False) as short, progress.bar(10, unit="images", shown=False) as other:
        short.update(10)
        clock.now = 99.0
        other.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.bar(10, unit="steps") as bar:
        bar.update(10)
        assert type(bar).__module__.startswith("tqdm")
    assert "100%" in terminal.getvalue() and "\r" in terminal.getvalue()
