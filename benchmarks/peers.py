"""The networks that we are compared with, as functions of noisy images and a timestep.

eager, channels_last     diffusers' UNet2DModel in PyTorch, in the order of axes that is PyTorch's, and in ours
compiled                 channels_last under torch.compile
onnxruntime, openvino    the same network, exported for one batch size, in float32
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TORCH = ("eager", "channels_last", "compiled")
ENGINES = ("onnxruntime", "openvino")
EXPORT = """
import sys, diffusers, torch
folder, batch, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
net = diffusers.UNet2DModel.from_pretrained(folder).eval()
size, channels = net.config.sample_size, net.config.in_channels
class Alone(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net
    def forward(self, x, t):
        return self.net(x, t, return_dict=False)[0]
inputs = (torch.zeros(batch, channels, size, size), torch.full((batch,), 500))
with torch.inference_mode():
    torch.onnx.export(Alone(), inputs, file, input_names=["x", "t"], output_names=["out"], dynamo=True)
"""


def exported(model: Path, batch: int) -> Path:
    """Return the ONNX file of a diffusers folder's network; write it, in a process of its own, if it is not there."""
    file = model / f"b{batch}.onnx"
    if not file.exists():
        command = [sys.executable, "-c", EXPORT, str(model / "unet"), str(batch), str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"The export to {file.name} failed:\n{result.stderr[-2000:]}")
    return file


def network(peer: str, model: Path, batch: int) -> Callable:
    """Return a peer's network as a function of torch tensors (x [b, c, h, w], t) -> out."""
    import torch

    if peer in TORCH:
        import diffusers

        net = diffusers.UNet2DModel.from_pretrained(model / "unet").eval()
        if peer != "eager":
            net.to(memory_format=torch.channels_last)
        run = torch.compile(net) if peer == "compiled" else net
        layout = torch.contiguous_format if peer == "eager" else torch.channels_last
        return lambda x, t: run(x.to(memory_format=layout), t, return_dict=False)[0]
    file, threads = str(exported(model, batch)), os.cpu_count() or 1
    if peer == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        infer = lambda x, t: session.run(None, {"x": x, "t": t})[0]
    else:
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.compile_model(file, "CPU", hints)
        infer = lambda x, t: compiled({"x": x, "t": t})["out"]
    times = lambda t: torch.as_tensor(t).expand(batch).to(torch.int64).numpy().copy()
    return lambda x, t: torch.from_numpy(infer(x.contiguous().numpy(), times(t)))
