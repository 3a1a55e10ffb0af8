"""The hub, spoken to through huggingface_hub: a small server on loopback stands for it.

huggingface_hub reads its endpoint when it is imported, so each scenario runs in a process with its own environment.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_params
from test_checkpoint import SCHEDULER, write_flat
from test_checkpoint_options import LOAD_OPTIONS, write_every_kind

import ddpm_jax
from ddpm_jax.checkpoint.hub import looks_like_repo_id

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs: a repository's listing, and its files."""

    repositories: dict[str, Path] = {}
    asked: list[str] = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0].strip("/")
        type(self).asked.append(f"{self.command} {path}")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo == "google/private":
            if self.headers.get("Authorization") == "Bearer good":
                repo = "google/ddpm-test"
            else:
                return self.send(401, b'{"error": "Invalid credentials"}', body)
        if repo == "google/broken":
            return self.send(500, b"{}", body)
        if repo not in self.repositories:
            return self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        folder = self.repositories[repo]
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT):
            return self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": self.oid(folder / name)}
                for name in files
            ]
            return self.send(200, json.dumps(entries).encode(), body)
        if api:
            items = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "private": False}
            return self.send(200, json.dumps(items).encode(), body)
        name = "/".join(rest[2:])
        if rest[:1] != ["resolve"] or name not in files:
            return self.send(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
        content = (folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.oid(folder / name)}"'}
        cut = len(content) // 2 if repo == "google/truncated" and name.endswith(".safetensors") else None
        return self.send(200, content, body, headers, cut)

    def oid(self, file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def send(self, status, content, body, headers=None, cut=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut:
            self.close_connection = True


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server with a google-style repository: flat, with a .bin beside the safetensors and pictures."""
    root = tmp_path_factory.mktemp("hub")
    test = write_flat(root / "test", make_params(), SCHEDULER)
    (test / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    (test / "README.md").write_text("not needed")
    (test / "images").mkdir()
    (test / "images/x.png").write_bytes(b"not needed")
    (root / "empty").mkdir()
    (root / "empty/README.md").write_text("nothing else")
    nested = root / "nested"
    ddpm_jax.save(make_params(1), nested / "inner", format="diffusers")
    ddim = ddpm_jax.Config(make_params().config.unet, sampler=ddpm_jax.SamplerConfig("DDIMScheduler"))
    ddpm_jax.save(ddpm_jax.Params(make_params().weights, ddim), root / "pipeline", format="diffusers")
    ours = root / "ours"
    ddpm_jax.save(make_params(2), ours)
    every = write_every_kind(root / "every")
    for step in (500, 1000):
        write_flat(root / f"run/checkpoint-{step}/unet", make_params(), scheduler=None)
    Hub.repositories = {
        "someone/run": root / "run",
        "google/ddpm-test": test,
        "google/truncated": test,
        "someone/empty": root / "empty",
        "someone/nested": nested,
        "someone/pipeline": root / "pipeline",
        "someone/ours": ours,
        "someone/every": every,
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
import json, sys
import jax, numpy as np
import ddpm_jax
for number, arguments in enumerate(json.loads(sys.argv[1])):
    name = arguments.pop("source")
    try:
        params = ddpm_jax.load(name, **arguments)
        total = float(sum(np.abs(np.asarray(leaf)).sum(dtype=np.float64) for leaf in jax.tree.leaves(params)))
        computes = [] if params.config.unet.dtype == "float32" else [params.config.unet.dtype]
        print("RESULT", json.dumps([total, params.config.sampler.class_name, *computes]))
    except Exception as error:
        print("RESULT", json.dumps([type(error).__name__, str(error)]))
"""


def load_there(endpoint, home, *scenarios, **environment):
    """Call `load` in a process that takes the server for the hub; a result or an error for each scenario."""
    names = ("PATH", "HOME", "VIRTUAL_ENV")
    env = {name: os.environ[name] for name in names if name in os.environ}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"} | environment
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(scenarios)], capture_output=True, text=True, env=env
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def total_of(seed):
    leaves = jax.tree.leaves(make_params(seed))
    return pytest.approx(float(sum(np.abs(np.asarray(leaf)).sum(dtype=np.float64) for leaf in leaves)), rel=1e-12)


def test_download_then_without_the_server(hub, tmp_path):
    Hub.asked.clear()
    (first,) = load_there(hub, tmp_path, {"source": "google/ddpm-test"})
    assert first == [total_of(0), "DDPMScheduler"]
    fetched = {line.rpartition("/")[2] for line in Hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    gone = "http://127.0.0.1:9"  # nobody listens there
    scenarios = (
        {"source": "google/ddpm-test"},
        {"source": "google/ddpm-test", "revision": "main", "local_files_only": True},
        {"source": "google/ddpm-other"},
        {"source": "google/ddpm-other", "local_files_only": True},
    )
    again, local, absent, absent_local = load_there(gone, tmp_path, *scenarios)
    assert again == local == first
    assert absent[0] == "FileNotFoundError" and "The hub cannot be reached" in absent[1]
    assert absent_local[0] == "FileNotFoundError" and absent_local[1].startswith("Offline, and google/ddpm-other")
    (offline,) = load_there(hub, tmp_path, {"source": "google/ddpm-test"}, HF_HUB_OFFLINE="1")
    assert offline == first


def test_errors_and_options(hub, tmp_path):
    cache = tmp_path / "cache"
    scenarios = (
        {"source": "google/ddpm-missing"},
        {"source": "google/private"},
        {"source": "google/private", "token": "bad"},
        {"source": "google/private", "token": "good"},
        {"source": "google/ddpm-test", "revision": "v9"},
        {"source": "google/ddpm-test", "variant": "fp16"},
        {"source": "google/truncated"},
        {"source": "google/broken"},
        {"source": "someone/empty"},
        {"source": "someone/nested", "subfolder": "inner"},
        {"source": "someone/ours"},
        {"source": "someone/pipeline", "subfolder": "unet"},
        {"source": "a--b"},
        {"source": "google/ddpm-test", "revision": COMMIT, "cache_dir": str(cache)},
        {"source": "someone/run"},
        {"source": "someone/run", "subfolder": "checkpoint-500"},
        {"source": "someone/nested"},
    )
    results = load_there(hub, tmp_path / "home", *scenarios)
    expected = [
        ("FileNotFoundError", "There is no model google/ddpm-missing on the hub"),
        ("PermissionError", "refuses access to google/private (401): log in"),
        ("PermissionError", "refuses access to google/private (401): log in"),
        None,
        ("FileNotFoundError", "google/ddpm-test has no revision 'v9'"),
        ("FileNotFoundError", "diffusion_pytorch_model.fp16.safetensors"),
        ("ConnectionError", "The download of google/truncated broke off"),
        ("FileNotFoundError", "The hub cannot be reached"),
        ("FileNotFoundError", "someone/empty on the hub: There is no unet/config.json"),
    ]
    for result, wanted in zip(results, expected, strict=False):
        if wanted is not None:
            assert result[0] == wanted[0] and wanted[1] in result[1], result
    assert results[3] == [total_of(0), "DDPMScheduler"]
    assert results[9][0] == total_of(1)
    assert results[10][0] == total_of(2)
    assert results[11] == [total_of(0), "DDIMScheduler"]  # the scheduler lies beside unet/
    assert results[12][0] == "ValueError" and "no id of the hub" in results[12][1]
    assert results[13][0] == total_of(0) and cache.is_dir()
    assert results[14][1].endswith("that can be opened: `subfolder` checkpoint-500 or checkpoint-1000.")
    assert results[15] == [total_of(0), "DDPMScheduler"]
    assert results[16][1].endswith("Name a folder of it that can be opened: `subfolder` inner.")


def test_every_option_of_load_acts_on_the_hub(hub, tmp_path):
    """What each option changes, for a repository that has a variant, a subfolder and averaged weights."""
    repository, cache = "someone/every", tmp_path / "cache"
    options = LOAD_OPTIONS | {"cache_dir": str(cache)}
    scenarios = [{"source": repository, "local_files_only": True}, {"source": repository}]
    scenarios += [{"source": repository, name: value} for name, value in options.items()]
    fresh, plain, *results = load_there(hub, tmp_path / "home", *scenarios)
    assert fresh[0] == "FileNotFoundError" and fresh[1].startswith("Offline")  # while the cache is empty
    assert plain == [total_of(0), "DDPMScheduler"]
    results = dict(zip(options, results, strict=True))
    assert results["revision"][0] == "FileNotFoundError" and "no revision 'v9'" in results["revision"][1]
    assert results["variant"][0] == total_of(1)
    assert results["subfolder"][0] == total_of(2)
    assert results["ema"][0] == total_of(3)
    assert results["dtype"] == [total_of(0), "DDPMScheduler", "bfloat16"]
    assert results["cache_dir"] == results["local_files_only"] == plain
    assert (cache / "models--someone--every").is_dir()
    bad, good = load_there(
        hub, tmp_path / "home", *({"source": "google/private", "token": token} for token in (options["token"], "good"))
    )
    assert bad[0] == "PermissionError" and good == plain


def test_an_existing_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ddpm_jax.save(make_params(), tmp_path / "google/ddpm-test")
    assert ddpm_jax.load("google/ddpm-test").config == make_params().config


@pytest.mark.parametrize("name", ["./x", "/x/y", "a/b/c", "..", "a//b", "~/x", ""])
def test_what_is_no_repository(name):
    assert not looks_like_repo_id(name)
