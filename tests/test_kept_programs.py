"""Programs that commands keep: found by what they are made of, in a folder of the user's own, bounded."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ddpm_jax.cli import compile_cache
from ddpm_jax.kept_programs import SUFFIX, KeptPrograms

X = np.arange(6, dtype=np.float32)


TRACED = []


def scaled(factor, x):
    TRACED.append(factor)  # only tracing comes here
    return factor * jnp.sin(x)


def mixed(factor, seed, x):
    """Made of several fused functions."""
    first, second = jax.random.split(jax.random.key(seed))
    return factor * jax.random.normal(first, x.shape) @ x + jnp.sin(x) * jax.random.uniform(second, x.shape)


def files(folder):
    return sorted(folder.glob(f"*{SUFFIX}"))


class TestPrograms:
    def test_a_later_process_does_not_trace(self, tmp_path):
        first = KeptPrograms(tmp_path, 2**30).program(scaled, 3.0, (X,), {})(X)
        TRACED.clear()
        later = KeptPrograms(tmp_path, 2**30)
        np.testing.assert_allclose(later.program(scaled, 3.0, (X,), {})(X), 3 * np.sin(X), rtol=1e-6)
        np.testing.assert_array_equal(later.program(scaled, 3.0, (X,), {})(X + 0), first)
        assert TRACED == [] and len(files(tmp_path)) == 1

    @pytest.mark.parametrize("change", ["static", "shape", "dtype", "options", "setting", "structure"])
    def test_another_program_is_another_file(self, tmp_path, change):
        static, args, options = 3.0, (X,), {}
        KeptPrograms(tmp_path, 2**30).program(scaled, static, args, options)
        if change == "static":
            static = 4.0
        elif change == "shape":
            args = (X[:3],)
        elif change == "dtype":
            args = (X.astype(np.float16),)
        elif change == "options":
            options = {"xla_backend_optimization_level": 1}
        kept = KeptPrograms(tmp_path, 2**30)
        if change == "structure":
            program = kept.program(lambda static, tree: static * tree["x"], static, ({"x": X},), options)
            np.testing.assert_allclose(program({"x": X}), static * X)
        elif change == "setting":
            with jax.default_matmul_precision("highest"):
                kept.program(scaled, static, args, options)
        else:
            np.testing.assert_allclose(
                kept.program(scaled, static, args, options)(*args), static * np.sin(args[0]), rtol=2e-3
            )
        assert len(files(tmp_path)) == 2

    def test_a_damaged_file_is_made_anew(self, tmp_path):
        KeptPrograms(tmp_path, 2**30).program(scaled, 3.0, (X,), {})
        (path,) = files(tmp_path)
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
            path.write_bytes(damaged)
            program = KeptPrograms(tmp_path, 2**30).program(scaled, 3.0, (X,), {})
            np.testing.assert_allclose(program(X), 3 * np.sin(X), rtol=1e-6)
            assert path.stat().st_size > len(damaged)

    def test_a_program_that_jax_has_cached_is_kept_whole(self, tmp_path):
        """XLA cannot save what it loaded: such a file fails when it runs. JAX's cache outlives an update of ours."""
        settings = {
            "jax_compilation_cache_dir": str(tmp_path / "jax"),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": 0,
        }
        before = {name: jax.config.values[name] for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            args = (np.uint32(0), np.ones((64, 64), np.float32))
            expected = jax.jit(mixed, static_argnums=0, compiler_options={}).lower(2.0, *args).compile()(*args)
            assert list((tmp_path / "jax").iterdir())
            for _ in range(2):  # made, then read
                jax.clear_caches()
                program = KeptPrograms(tmp_path / "ours", 2**30).program(mixed, 2.0, args, {})
                np.testing.assert_array_equal(program(*args), expected)
            assert len(files(tmp_path / "ours")) == 1
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()

    def test_plain_numbers_are_arguments(self, tmp_path):
        kept = KeptPrograms(tmp_path, 2**30)
        for number in (0.5, 2, np.float32(3)):  # weakly typed, another type, an array's type
            np.testing.assert_allclose(kept.program(scaled, 3.0, (number,), {})(number), 3 * np.sin(number), rtol=1e-6)
        assert len(files(tmp_path)) == 3

    def test_the_oldest_are_removed(self, tmp_path):
        kept = KeptPrograms(tmp_path, 2**30)
        for age, factor in enumerate((1.0, 2.0, 3.0)):
            kept.program(scaled, factor, (X,), {})
            newest = max(files(tmp_path), key=os.path.getmtime)
            os.utime(newest, (1000 + age, 1000 + age))
        size = files(tmp_path)[0].stat().st_size
        oldest, *_, newest = sorted(files(tmp_path), key=os.path.getmtime)
        KeptPrograms(tmp_path, 2**30).program(scaled, 1.0, (X,), {})  # a program that is used again is no longer old
        assert oldest.stat().st_mtime > newest.stat().st_mtime
        oldest = min(files(tmp_path), key=os.path.getmtime)
        KeptPrograms(tmp_path, int(3.5 * size)).program(scaled, 4.0, (X,), {})
        assert len(files(tmp_path)) == 3 and oldest not in files(tmp_path)

    def test_a_folder_that_cannot_be_written(self, tmp_path, monkeypatch):
        kept = KeptPrograms(tmp_path, 2**30)
        kept.folder = tmp_path / "gone"
        np.testing.assert_allclose(kept.program(scaled, 3.0, (X,), {})(X), 3 * np.sin(X), rtol=1e-6)


class TestFolder:
    def run(self, tmp_path, *flags):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-m", "ddpm_jax", "sample", "digits-16", "--sampler", "ddim", "--steps", "1"]
        command += ["--batch-size", "1", "--out", str(tmp_path / "out"), "--force", *flags]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob(f"*{SUFFIX}")}

    @pytest.mark.slow
    def test_commands_keep_programs_in_the_users_cache_folder(self, tmp_path):
        assert self.run(tmp_path, "--compile-cache", "none") == {}
        first = self.run(tmp_path)
        assert first and first.keys() == self.run(tmp_path).keys()
        folder = next(iter(first)).parent
        assert folder.stat().st_mode & 0o077 == 0 and folder.parent.stat().st_mode & 0o077 == 0

    def test_a_folder_that_others_may_write_is_not_used(self, tmp_path, monkeypatch, capsys):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        folder = compile_cache.usual_folder()
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        before = jax.config.jax_compilation_cache_dir
        compile_cache.keep_compiled(None)
        assert "others can write into it" in capsys.readouterr().err
        assert jax.config.jax_compilation_cache_dir == before
