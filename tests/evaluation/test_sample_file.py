"""The file of all samples: a round trip, and files that are cut short or something else."""
import zipfile

import numpy as np
import pytest
import torch
from helpers.problems import right_on

from pwoa_cli.errors import InputError
from pwoa_cli.evaluation import sample_file
from pwoa_cli.evaluation.evaluate import evaluate


def test_samples_round_trip_bit_for_bit_and_a_cut_file_is_an_error(tmp_path):
    model, x, y = right_on(20)
    found = {"model": evaluate(model, x, y, attacks="fgsm,cw-2", norm="l2", eps=0.3, keep_inputs=True)}
    path = tmp_path / "samples.npz"
    sample_file.save(path, found, index=torch.arange(5, 25), labels=y, inputs=True)
    read = sample_file.read(path)
    assert read["index"].tolist() == list(range(5, 25)) and np.array_equal(read["label"], y.numpy())
    for name, result in found["model"].items():
        assert np.array_equal(read[f"model/correct/{name}"], result.correct.numpy())
        assert read[f"model/done/{name}"].all()
        assert read[f"model/distance/{name}"].tobytes() == result.distance.numpy().tobytes()
    assert read["model/inputs"].tobytes() == found["model"].inputs.numpy().tobytes()
    assert tuple(read["model/broken_by"]) == found["model"].broken_by
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="samples.npz cannot be read as samples of an evaluation"):
            sample_file.read(path)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}]))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x", "no array")  # NumPy gives its bytes
    for other in ("bare.npy", "missing.npz", "objects.npz", "text.npz"):
        with pytest.raises(InputError, match=f"{other} cannot be read"):
            sample_file.read(tmp_path / other)
