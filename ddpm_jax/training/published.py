"""Publish a run: averages of any length from its snapshots, and a model card."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.checkpoint.folder import CHECKPOINTS, read_config, read_record, read_weights, steps_in
from ddpm_jax.files import check_local
from ddpm_jax.images.walk import shown
from ddpm_jax.params import Params
from ddpm_jax.training import ema, logs
from ddpm_jax.training.run_folder import SNAPSHOTS
from ddpm_jax.training.settings import of_this_version
from ddpm_jax.validation import check

_UNCONDITIONAL = """from diffusers import DDPMPipeline

DDPMPipeline.from_pretrained(".")(batch_size=1).images[0].save("image.png")"""
_CONDITIONAL = """import jax, ddpm_jax  # DDPMPipeline gives the network no classes

images = ddpm_jax.sample(ddpm_jax.load("."), jax.random.key(0), 4, class_labels=0)
ddpm_jax.to_pil(images)[0].save("image.png")"""


def average(run_folder: str | Path, length: float, *, step: int | None = None) -> Params:
    """Return a power-function average of a run's weights, of a length that is chosen after the training.

    Args:
        run_folder: of a run with `power_ema`.
        length: standard deviation of the weighting over time, as a share of the training: 0.05 to 0.25.
        step: last step of the average; by default that of the last snapshot.

    Raises:
        FileNotFoundError: the run has no snapshots.
        ValueError: a length out of range, a step before the first snapshot or after the last.

    Example:
        >>> params = average("runs/photos", 0.12)                                           # doctest: +SKIP
    """
    check_local(run_folder)
    folder = Path(run_folder).expanduser()
    record = read_record(folder)
    lengths, steps = record["config"]["ema"]["power_ema"], steps_in(folder / SNAPSHOTS)
    if not steps:
        raise FileNotFoundError(f"{folder} has no snapshots: train with `power_ema` 0.05 0.10.")
    step = steps[-1] if step is None else step
    there = f"the snapshots of {folder} are from step {steps[0]} to {steps[-1]}"
    check(steps[0] <= step <= steps[-1], f"`step` {step} is out of range: {there}.")
    steps = [number for number in steps if number <= step]
    config = read_config(folder)
    snapshots = [(number, place) for number in steps for place in range(len(lengths))]
    gammas = [ema.gamma_from_length(value) for value in lengths]
    shares = ema.solve([(number, gammas[place]) for number, place in snapshots], step, length)
    total: Any = None
    for share, (number, place) in zip(shares, snapshots, strict=True):
        tree = read_weights(folder / SNAPSHOTS, number, str(place), config)
        scaled = jax.tree.map(lambda leaf, share=share: np.float64(share) * leaf, tree)
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
    return Params(jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32)), total), config)


def card(folder: Path) -> str:
    """Return a model card for the newest weights of a run: their data, settings and losses, as a README.md."""
    record, steps = read_record(folder), steps_in(folder / CHECKPOINTS)
    config, data = of_this_version(record["config"]), record["data"]
    step = max(steps, default=0)
    # a killed run has logged steps after its last checkpoint, which are not in these weights
    lines = [line for line in logs.read(folder) if line["step"] <= step]
    last = next((line for line in reversed(lines) if "loss" in line), None)
    validation = next((line for line in reversed(lines) if "validation_loss" in line), None)
    source = shown(Path(config["data"]["data"]).name)
    rows = {
        "images": f"{data['images']} of `{source}`, {data['channels']} channels",
        "classes": len(data["classes"]) or "none",
        "parameters": f"{record['parameters']:,}",
        "steps": step,
        "batch size": config["loop"]["batch_size"],
        "learning rate": f"{config['optimizer']['learning_rate']} ({config['optimizer']['lr_schedule']})",
        "weights": f"average, decay {config['ema']['ema_decay']}",
        "training loss": f"{last['loss']:.5f}" if last else "none",
        "validation loss": f"{validation['validation_loss']:.5f}" if validation else "not measured",
        "trained on": record["devices"],
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    if config["model"]["init"]:
        rows = {"fine-tuned from": f"`{config['model']['init']}`"} | rows
    conditional = bool(data["classes"])
    task = "" if conditional else "\npipeline_tag: unconditional-image-generation"
    code = _CONDITIONAL if conditional else _UNCONDITIONAL
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    classes = _class_table(data["classes"], read_config(folder).null_class)
    return f"""---
library_name: diffusers{task}
tags: [ddpm, diffusion, jax]
---

# A denoising diffusion model, trained with ddpm_jax

| | |
|---|---|
{table}
{classes}
```python
{code}
```
"""


def _class_table(names: list[str], null_class: int | None) -> str:
    """Return a table of the classes by number, the one that stands for none included; empty without classes.

    Example:
        >>> print(_class_table(["cat", "a|b"], 2))
        <BLANKLINE>
        | class | name |
        |---|---|
        | 0 | cat |
        | 1 | a\\|b |
        | 2 | no class, for classifier-free guidance |
        <BLANKLINE>
    """
    rows = [(number, re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(name.split()))) for number, name in enumerate(names)]
    if null_class is not None and null_class >= len(names):
        rows.append((null_class, "no class, for classifier-free guidance"))
    lines = "".join(f"| {number} | {name} |\n" for number, name in rows)
    return f"\n| class | name |\n|---|---|\n{lines}" if rows else ""
