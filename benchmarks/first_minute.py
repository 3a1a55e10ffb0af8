"""Time a new user's first command, from its start to its pictures, ours and diffusers', in processes that take turns.

    python benchmarks/first_minute.py                  # five rounds of everything
    python benchmarks/first_minute.py --rounds 2 --peers cold warm

The job is the README's first command: 16 images of the demo, DPM-Solver++ with 20 evaluations, from the start of the
process to the PNG files.

    cold            `ddpm-jax sample --fast` with an empty compile cache
    warm            the same command once more
    eager           diffusers: UNet2DModel and DPMSolverMultistepScheduler of the exported demo
    channels_last   the same in the memory format that is fastest on CPU
    import          `import ddpm_jax` alone; import_peer: diffusers' classes alone

Ratios are taken within a round and their median is printed: only they count on a shared machine. Needs the `parity`
extra.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import describe_machine, ratio_line, timed_process

PEERS = ("cold", "warm", "eager", "channels_last", "import", "import_peer")
AGAINST = {"cold": ("eager", "channels_last"), "warm": ("eager", "channels_last"), "import": ("import_peer",)}

EXPORT = "import sys, ddpm_jax; ddpm_jax.save(ddpm_jax.load(), sys.argv[1], format='diffusers')"
DIFFUSERS = """
import sys
import diffusers, torch
from PIL import Image

model, out, form = sys.argv[1:]
net = diffusers.UNet2DModel.from_pretrained(model, subfolder="unet").eval()
if form == "channels_last":
    net.to(memory_format=torch.channels_last)
scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(model, subfolder="scheduler", solver_order=3)
with torch.inference_mode():
    scheduler.set_timesteps(20)
    x = torch.randn((16, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    images = ((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
for number, image in enumerate(images):
    Image.fromarray(image).save(f"{out}/{number:05d}.png")
"""


def main() -> None:
    """Run rounds of all peers and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", EXPORT, f"{folder}/demo"], check=True)
        for _ in range(options.rounds):
            rounds.append({peer: run(peer, Path(folder)) for peer in options.peers})
            print("  ".join(f"{peer} {seconds:.2f} s" for peer, seconds in rounds[-1].items()), flush=True)
    for peer in options.peers:
        print(ratio_line(peer, AGAINST.get(peer, ()), rounds), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": describe_machine(), "rounds": rounds}, indent=1) + "\n")


def run(peer: str, folder: Path) -> float:
    """Return the seconds of one process, from its start to its end."""
    cache, out = folder / "cache", folder / "pictures"
    if peer == "cold":
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = {
        "cold": ["-m", "ddpm_jax", "sample", "--fast", "--out", str(out / "set")],
        "warm": ["-m", "ddpm_jax", "sample", "--fast", "--out", str(out / "set")],
        "eager": ["-c", DIFFUSERS, f"{folder}/demo", str(out), "eager"],
        "channels_last": ["-c", DIFFUSERS, f"{folder}/demo", str(out), "channels_last"],
        "import": ["-c", "import ddpm_jax"],
        "import_peer": ["-c", "import torch; from diffusers import UNet2DModel, DPMSolverMultistepScheduler"],
    }[peer]
    return timed_process([sys.executable, *command], os.environ | {"XDG_CACHE_HOME": str(cache)})


if __name__ == "__main__":
    main()
