"""PyTorch files that unpack to more than they are, and what is read of those that do not."""

import codecs
import zipfile

import pytest
import torch
from test_weights_checkpoints import Small, filled, values

import vitkern.models as models


def bomb(path, size):
    """A checkpoint with ``size`` zeros where its optimiser should be, compressed to a thousandth."""
    whole = path.with_name("whole.pth")
    torch.save({"model": filled(1), "optimizer": torch.zeros(1)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        numbers = [int(name.rsplit("/", 1)[1]) for name in source.namelist() if "/data/" in name]
        for name in source.namelist():
            last = name.endswith(f"/data/{max(numbers)}")
            with target.open(name, "w") as file:
                for _ in range(size >> 20 if last else 0):
                    file.write(bytes(1 << 20))
                if not last:
                    file.write(source.read(name))


def test_an_archive_that_unpacks_to_more_than_a_checkpoint_is_refused_before_it_is(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    bomb(path, 40 << 20)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    for read in (models.read_weights, lambda path: models.load_weights(Small(), path)):
        with pytest.raises(ValueError, match="the archive unpacks to more than a checkpoint: got 41,9"):
            read(path)


def test_the_model_says_how_much_there_may_be(tmp_path):
    """Ten times the file: nothing against it where no model is known, too much for one of a hundred numbers."""
    torch.save({"model": filled(1), "zeros": torch.zeros(9 << 20), "noise": torch.rand(1 << 20)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as source,
        zipfile.ZipFile(tmp_path / "z.pth", "w", 8, compresslevel=1) as to,
    ):
        for name in source.namelist():
            to.writestr(name, source.read(name))
    assert models.read_weights(tmp_path / "z.pth").keys() == filled(1).keys()
    with pytest.raises(ValueError, match=r"unpacks to more than a checkpoint: .* for this model"):
        models.load_weights(Small(), tmp_path / "z.pth")


def test_of_a_file_that_is_mapped_only_the_model_is_read(tmp_path, monkeypatch):
    mapped, load = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda *given, mmap, **named: mapped.append(mmap) or load(*given, mmap=mmap, **named)
    )
    torch.save(filled(1), tmp_path / "w.pth")
    models.load_weights(Small(), tmp_path / "w.pth")
    models.read_weights(tmp_path / "w.pth")
    torch.save(filled(1), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    models.load_weights(Small(), tmp_path / "old.pth")
    assert mapped == [True, False, False]


def test_a_training_may_hold_several_times_its_model(tmp_path):
    model = Small()
    copies = {f"copy {i}": torch.zeros(1 << 20) for i in range(8)}
    torch.save({"model": filled(1), "optimizer": copies}, tmp_path / "w.pth")
    models.load_weights(model, tmp_path / "w.pth")
    assert values(model) == {1.0}
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "z.pth", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="expected at most"):  # zeros in fewer bytes, of a model of a hundred
        models.load_weights(model, tmp_path / "z.pth")
    copies = {f"copy {i}": torch.randn(1 << 10) for i in range(8)}
    torch.save({"model": filled(2), "optimizer": copies}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "z.pth", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    models.load_weights(model, tmp_path / "z.pth")  # packed by hand, and no larger than it may be
    assert values(model) == {2.0}


def test_what_was_loaded_is_the_models_own(tmp_path):
    """A mapped file may be written to afterwards."""
    torch.save(filled(1), tmp_path / "w.pth")
    model = Small()
    models.load_weights(model, tmp_path / "w.pth")
    state = models.read_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"")
    assert values(model) == {1.0} and float(state["first.weight"].sum()) == 12.0


class Growing:
    """A few bytes that ask for many."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


GROWING = {
    "bytearray": Growing(bytearray, 1 << 40),
    "codec": Growing(codecs.encode, Growing(codecs.encode, b"ab", "hex"), "hex"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "old format"])
@pytest.mark.parametrize("kind", GROWING)
def test_what_makes_more_than_it_holds_is_refused_before_it_does(tmp_path, monkeypatch, kind, zipped):
    path = tmp_path / "w.pth"
    torch.save({"model": filled(1), "notes": GROWING[kind]}, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpacked"))
    for read in (models.read_weights, lambda path: models.load_weights(Small(), path)):
        with pytest.raises(ValueError, match=f"makes more than it holds: got a call of .*{kind}"):
            read(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "old format"])
def test_bytes_and_text_beside_tensors_are_read(tmp_path, zipped):
    content = {"model": filled(1), "bytes": b"abc\xff", "text": "latin1"}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert models.read_weights(tmp_path / "w.pth").keys() == filled(1).keys()
