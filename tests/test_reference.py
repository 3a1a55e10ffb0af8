"""Files of statistics: what other programs write and read, notes, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
from torch_peers import peer

from ddpm_jax.evaluation import metrics
from ddpm_jax.evaluation.moments import Statistics
from ddpm_jax.evaluation.reference import FeatureSet, check_comparable, read_statistics, write_statistics

FEATURES = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
LOGITS = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)


def make_set(protocol="pixels", **note):
    return FeatureSet(Statistics.of(FEATURES), protocol, FEATURES, LOGITS, note)


def assert_same_statistics(one, other):
    np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(one.covariance, other.covariance)
    assert one.count == other.count


class TestOurs:
    def test_round_trip(self, tmp_path):
        made = make_set(source="photos", sizes=[[8, 8], [16, 8]])
        read = read_statistics(write_statistics(tmp_path / "a/x.npz", made, keep_features=True))
        assert_same_statistics(read.statistics, made.statistics)
        np.testing.assert_array_equal(read.features, FEATURES)
        np.testing.assert_array_equal(read.logits, LOGITS)
        assert read.protocol == "pixels"
        assert read.note == {"source": "photos", "sizes": [[8, 8], [16, 8]], "num_images": 30}

    def test_features_are_kept_on_demand(self, tmp_path):
        read = read_statistics(write_statistics(tmp_path / "x.npz", make_set()))
        assert read.features is None and read.logits is None
        assert_same_statistics(read.statistics, make_set().statistics)

    def test_other_programs_read_it(self, tmp_path):
        """pytorch-fid takes f["mu"][:] and f["sigma"][:], EDM dict(np.load), clean-fid "feats"; none admits pickles."""
        path = write_statistics(tmp_path / "x.npz", make_set(), keep_features=True)
        with np.load(path) as file:
            mean, covariance = file["mu"][:], file["sigma"][:]
        assert mean.dtype == covariance.dtype == np.float64
        np.testing.assert_allclose(covariance, np.cov(FEATURES.astype(np.float64), rowvar=False), rtol=1e-12)
        np.testing.assert_array_equal(dict(np.load(path))["feats"], FEATURES)

    @pytest.mark.slow
    def test_pytorch_fid_reads_it(self, tmp_path):
        fid_score = peer("pytorch_fid.fid_score")
        path = write_statistics(tmp_path / "x.npz", make_set())
        mean, covariance = fid_score.compute_statistics_of_path(str(path), None, 1, 4, "cpu")
        assert_same_statistics(Statistics(mean, covariance, 30), make_set().statistics)

    def test_a_file_is_not_replaced_unasked(self, tmp_path):
        path = write_statistics(tmp_path / "x.npz", make_set())
        with pytest.raises(FileExistsError, match=r"x.npz exists already. .*`overwrite`"):
            write_statistics(path, make_set())
        assert read_statistics(write_statistics(path, make_set("mine"), overwrite=True)).protocol == "mine"

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = write_statistics(tmp_path / "x.npz", make_set())

        def fail(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", fail)
        with pytest.raises(KeyboardInterrupt):
            write_statistics(path, make_set("mine"), overwrite=True)
        assert read_statistics(path).protocol == "pixels"

    def test_what_cannot_be_written_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="x.pkl does not end in .npz, .* Name it x.npz"):
            write_statistics(tmp_path / "x.pkl", make_set())
        with pytest.raises(ValueError, match="`keep_features` is True, but the set holds statistics alone"):
            write_statistics(tmp_path / "x.npz", FeatureSet(Statistics.of(FEATURES), "pixels"), keep_features=True)
        assert not any(tmp_path.iterdir())


class TestOthers:
    def test_moments(self, tmp_path):
        """As pytorch-fid, clean-fid and EDM write them, and guided-diffusion beside its images."""
        of_set = Statistics.of(FEATURES)
        np.savez(tmp_path / "x.npz", mu=of_set.mean, sigma=of_set.covariance, arr_0=np.zeros((2, 4, 4, 3), np.uint8))
        read = read_statistics(tmp_path / "x.npz", protocol="inception-2048/edm")
        assert read.protocol == "inception-2048/edm" and read.statistics.count is None and read.note == {}
        np.testing.assert_array_equal(read.statistics.covariance, of_set.covariance)
        assert metrics.fid(read.statistics, FEATURES) < 1e-12

    @pytest.mark.parametrize("key", ["feats", "pool_3"])
    def test_features(self, tmp_path, key):
        """As clean-fid writes them for KID, and score_sde."""
        np.savez(tmp_path / "x.npz", **{key: FEATURES})
        read = read_statistics(tmp_path / "x.npz", protocol="theirs")
        np.testing.assert_array_equal(read.features, FEATURES)
        assert_same_statistics(read.statistics, Statistics.of(FEATURES))

    def test_must_be_named(self, tmp_path):
        np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2))
        with pytest.raises(
            ValueError, match="does not note how .* Say so by `protocol`, .*'inception-2048/pytorch-fid'"
        ):
            read_statistics(tmp_path / "x.npz")


def test_protocols_do_not_mix(tmp_path):
    path = write_statistics(tmp_path / "x.npz", make_set("inception-2048/clean-fid"))
    assert read_statistics(path, protocol="inception-2048/clean-fid").protocol == "inception-2048/clean-fid"
    with pytest.raises(ValueError, match="holds features by 'inception-2048/clean-fid', not by 'pixels'"):
        read_statistics(path, protocol="pixels")
    with pytest.raises(ValueError, match="`real` has features by 'inception-2048/clean-fid' and `fake` by 'pixels'"):
        check_comparable(read_statistics(path), make_set())


def test_sizes_that_differ_are_warned_of():
    square, tall = make_set(sizes=[[8, 8], [8, 8]]), make_set(sizes=[[8, 8], [8, 16]])
    with pytest.warns(UserWarning, match="`real` has images of 8 x 8 pixels and `fake` of 8 x 8 to 8 x 16:"):
        check_comparable(square, tall)


@pytest.mark.filterwarnings("error")
def test_sizes_that_are_equal_or_unknown_are_not():
    square = make_set(sizes=[[8, 8], [8, 8]])
    check_comparable(square, make_set(sizes=[[8, 8], [8, 8]]))
    check_comparable(square, make_set())


class TestRefusals:
    @pytest.mark.parametrize(
        "arrays, words",
        [
            ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "holds images; statistics are `mu` and `sigma`"),
            ({"mu": np.zeros(2)}, "holds mu; statistics are"),
            ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"shapes \[3\] and \[2, 2\]"),
            ({"mu": np.zeros(2), "sigma": np.eye(2) * np.nan}, "`covariance` holds 4 values that are NaN"),
            (
                {"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])},
                "`sigma` differs from its transpose by 2",
            ),
            ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "`mu` is int64 and `sigma` float64; both must be floats"),
            ({"mu": np.zeros(2), "sigma": np.eye(2), "feats": np.zeros((5, 3))}, "`mu` has 2 features and `feats` 3;"),
            ({"feats": np.array([[0.0], [np.nan]])}, "features` has values that are NaN .* row 1 of 2"),
            ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "is no .npz file of arrays, or damaged"),
        ],
    )
    def test_of_contents(self, tmp_path, arrays, words):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=f"x.npz.*{words}"):
            read_statistics(tmp_path / "x.npz", protocol="theirs")

    @pytest.mark.parametrize("note", ["{}", "[1]", "1", "text", json.dumps({"format_version": 1})])
    def test_of_notes(self, tmp_path, note):
        np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2), note=np.array(note))
        with pytest.raises(ValueError, match="x.npz has a `note` that this package has not written"):
            read_statistics(tmp_path / "x.npz", protocol="theirs")

    def test_of_later_versions(self, tmp_path):
        note = np.array(json.dumps({"format_version": 2, "protocol": "pixels"}))
        np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2), note=note)
        with pytest.raises(ValueError, match="x.npz has the format 2; this version reads 1"):
            read_statistics(tmp_path / "x.npz")

    def test_of_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file .*x.npz. `write_statistics` makes one"):
            read_statistics(tmp_path / "x.npz")
        (tmp_path / "x.npz").write_text("no archive")
        np.save(tmp_path / "y.npy", np.zeros(3))
        whole = write_statistics(tmp_path / "z.npz", make_set()).read_bytes()
        (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "empty.npz").write_bytes(b"")
        for name in ("x.npz", "y.npy", "half.npz", "empty.npz"):
            with pytest.raises(ValueError, match=f"{name} is no .npz file of arrays, or damaged"):
                read_statistics(tmp_path / name)

    def test_of_a_damaged_array(self, tmp_path):
        path = write_statistics(tmp_path / "x.npz", make_set())
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("sigma.npy").header_offset + 200
        data = bytearray(path.read_bytes())
        data[start] ^= 255
        path.write_bytes(data)
        with pytest.raises(ValueError, match="x.npz is no .npz file of arrays, or damaged"):
            read_statistics(path)
