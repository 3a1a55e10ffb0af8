"""What becomes of a run: averages of any length from its snapshots, and the card that goes with its weights."""

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
from ddpm_jax.validation import check

_UNCONDITIONAL = """from diffusers import DDPMPipeline

DDPMPipeline.from_pretrained(".")(batch_size=1).images[0].save("image.png")"""
_CONDITIONAL = """import jax, ddpm_jax  # DDPMPipeline gives the network no classes

images = ddpm_jax.sample(ddpm_jax.load("."), jax.random.key(0), 4, class_labels=0)
ddpm_jax.to_pil(images)[0].save("image.png")"""


def average(run: str | Path, length: float, *, step: int | None = None) -> Params:
    """Return the average of a run's weights over a length that is chosen afterwards.

    Args:
        run: folder of a run with `power_ema`.
        length: standard deviation of the average's weights over time, as a share of the training: 0.05 to 0.25.
        step: where it ends; by default at the last snapshot.

    Raises:
        FileNotFoundError: the run has no snapshots.
        ValueError: a length out of range, a step before the first snapshot or after the last.

    Example:
        >>> params = average("runs/photos", 0.12)                                           # doctest: +SKIP
    """
    check_local(run)
    run = Path(run).expanduser()
    record = read_record(run)
    lengths, steps = record["config"]["ema"]["power_ema"], steps_in(run / SNAPSHOTS)
    if not steps:
        raise FileNotFoundError(f"{run} has no snapshots: train with `power_ema` 0.05 0.10.")
    step = steps[-1] if step is None else step
    there = f"the snapshots of {run} are from step {steps[0]} to {steps[-1]}"
    check(steps[0] <= step <= steps[-1], f"`step` {step} is out of range: {there}.")
    steps = [number for number in steps if number <= step]
    config = read_config(run)
    snapshots = [(number, place) for number in steps for place in range(len(lengths))]
    gammas = [ema.gamma_from_length(value) for value in lengths]
    shares = ema.solve([(number, gammas[place]) for number, place in snapshots], step, length)
    total: Any = None
    for share, (number, place) in zip(shares, snapshots, strict=True):
        tree = read_weights(run / SNAPSHOTS, number, str(place), config)
        scaled = jax.tree.map(lambda leaf, share=share: np.float64(share) * leaf, tree)
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
    return Params(jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32)), total), config)


def card(run: Path) -> str:
    """Return a README.md for the weights of a run: the data, the steps, the numbers."""
    record, steps = read_record(run), steps_in(run / CHECKPOINTS)
    config, data = record["config"], record["data"]
    step = max(steps, default=0)
    lines = [line for line in logs.read(run) if line["step"] <= step]  # what came after a kill is not in the weights
    last = next((line for line in reversed(lines) if "loss" in line), None)
    validation = next((line for line in reversed(lines) if "validation_loss" in line), None)
    source = shown(Path(config["data"]["data"]).name)
    rows = {
        "images": f"{data['images']} of `{source}`, {data['channels']} channels",
        "classes": len(data["classes"]) or "none",
        "parameters": f"{record['parameters']:,}",
        "steps": step,
        "batch size": config["run"]["batch_size"],
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
    classes = _class_table(data["classes"], read_config(run).null_class)
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
    """Return a table of the classes by number, with what stands for none; nothing where there are no classes.

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
