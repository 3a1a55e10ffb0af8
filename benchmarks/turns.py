"""Shared by the benchmarks: timing processes that take turns, and ratios within a round."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version


def describe_machine() -> str:
    """Return the machine, its cores, and the versions of the packages that are compared."""
    versions = []
    for name in ("ddpm-jax", "jax", "torch", "diffusers", "onnxruntime", "openvino", "pytorch-fid", "torch-fidelity"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}"


def timed_process(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds from the start of a process to its end.

    Raises:
        RuntimeError: the process failed.
    """
    start = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - start
    if result.returncode:
        raise RuntimeError(f"{command} failed:\n{result.stderr[-2000:]}")
    return elapsed


def ratio_line(peer: str, others: Sequence[str], rounds: Sequence[Mapping[str, float]]) -> str:
    """Return a peer's median seconds, and its ratios to others within a round as median (least .. greatest)."""
    line = f"{peer:14s} {statistics.median(times[peer] for times in rounds):7.2f} s"
    for other in others:
        if other in rounds[0]:
            ratios = sorted(times[peer] / times[other] for times in rounds)
            line += f"   of {other} {statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
    return line
