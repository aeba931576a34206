"""Whatever a user may name as a checkpoint: the folder behind it, or one line with the true remedy."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral.checkpoint.checkpoint import open_checkpoint
from mistral.errors import InputError
from mistral.places import find_checkpoint
from mistral.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoint_forms import DENSE, random_tensors, refusal, write_checkpoint
from tests.support.command_line import CommandLine, write_model

COMMIT, OLD = "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's client."""
    folder = tmp_path / "cache" / "hub"
    folder.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def download(hub: Path, repository: str, files: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Put the files of a folder into a cache as Hugging Face's client does: links to blobs. Returns the snapshot."""
    entry = hub / f"models--{repository.replace('/', '--')}"
    snapshot = entry / "snapshots" / commit
    for folder in (snapshot, entry / "refs", entry / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(files.iterdir())):
        blob = entry / "blobs" / f"{commit[:8]}{number}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if ref:
        (entry / "refs" / ref).write_text(commit)
    return snapshot


def refused(place: str | Path) -> str:
    """The one line with which a place is refused, without the place."""
    with pytest.raises(InputError) as caught:
        find_checkpoint(place)
    line = str(caught.value)
    assert "\n" not in line
    return line.partition(": ")[2]


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "models", DENSE, random_tensors(DENSE), "hf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/models") == open_checkpoint("~/models").folder == tmp_path / "models"
    assert find_checkpoint("~/models/config.json") == tmp_path / "models"
    assert refused("~/none") == "no such folder; name the folder of a downloaded model"
    assert refused("~/none.gguf") == "no such file; name a GGUF file or the folder of a downloaded model"
    assert refused("~nobody-of-this-name/models") == "no user of that name; write the whole path"


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("hf", ("model.safetensors", "config.json")),
        ("hf-sharded-index", ("model-00002-of-00002.safetensors", "model.safetensors.index.json")),
        ("hf-bin", ("pytorch_model.bin",)),
        ("consolidated.pth", ("consolidated.00.pth", "params.json")),
        ("consolidated-sharded", ("consolidated-00001-of-00003.safetensors",)),
    ],
)
def test_a_file_of_a_checkpoint_stands_for_its_folder(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    write_checkpoint(tmp_path, DENSE, random_tensors(DENSE), form)
    (tmp_path / "tokenizer.model").touch()
    for name in (*names, "tokenizer.model"):
        assert open_checkpoint(tmp_path / name).folder == tmp_path


def test_a_cache_entry_stands_for_its_snapshot(tmp_path: Path, hub: Path) -> None:
    write_checkpoint(tmp_path / "new", DENSE, random_tensors(DENSE, seed=1), "hf")
    write_checkpoint(tmp_path / "old", DENSE, random_tensors(DENSE, seed=2), "hf")
    snapshot = download(hub, "org/name-7B-v0.1", tmp_path / "new")
    old = download(hub, "org/name-7B-v0.1", tmp_path / "old", OLD, ref="v1")
    entry = snapshot.parents[1]
    for place in (entry, entry / "snapshots", snapshot, snapshot / "model.safetensors", "org/name-7B-v0.1"):
        assert find_checkpoint(place) == snapshot, place
    assert find_checkpoint("https://huggingface.co/org/name-7B-v0.1") == snapshot
    assert find_checkpoint("org/name-7B-v0.1@v1") == find_checkpoint(f"org/name-7B-v0.1@{OLD[:9]}") == old
    values = open_checkpoint("org/name-7B-v0.1").get("norm.weight")
    assert (values == random_tensors(DENSE, seed=1)["norm.weight"]).all()
    (entry / "refs" / "main").unlink()
    assert refused("org/name-7B-v0.1") == (
        "which of several snapshots it is, is not said; download it: hf download org/name-7B-v0.1"
    )
    assert refused("org/name-7B-v0.1@v2").startswith("revision v2 is not there; download it: hf download org/name")


def test_the_only_snapshot_needs_no_reference(tmp_path: Path, hub: Path) -> None:
    write_checkpoint(tmp_path / "files", DENSE, random_tensors(DENSE), "hf")
    snapshot = download(hub, "org/name", tmp_path / "files", ref=None)
    assert find_checkpoint("org/name") == find_checkpoint(snapshot.parents[1]) == snapshot


def test_a_folder_of_that_name_comes_before_the_cache(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "org" / "name", DENSE, random_tensors(DENSE), "hf")
    download(hub, "org/name", tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("org/name") == Path("org/name")


def test_a_model_that_is_nowhere_comes_with_the_command_that_downloads_it(hub: Path) -> None:
    where = f"no such folder, and no such model in the cache {hub}; download it: "
    assert refused("org/name") == f"{where}hf download org/name --local-dir name"
    assert refused("https://huggingface.co/org/name/tree/v2") == (
        f"{where}hf download org/name --revision v2 --local-dir name"
    )


def test_a_snapshot_that_lacks_files_comes_with_the_command(tmp_path: Path, hub: Path) -> None:
    write_checkpoint(tmp_path / "files", DENSE, random_tensors(DENSE), "hf-sharded-index")
    snapshot = download(hub, "org/name", tmp_path / "files")
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    assert refusal("org/name").endswith("download it: hf download org/name 'model-00002-of-00002.safetensors'")
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").unlink()
    assert "no weights beside config.json (" in refusal("org/name")
    assert "download them: hf download org/name or name another folder" in refusal("org/name")


def test_a_whole_cache_names_what_is_in_it(tmp_path: Path, hub: Path) -> None:
    write_checkpoint(tmp_path / "files", DENSE, random_tensors(DENSE), "hf")
    for name in ("one/a", "two/b--c"):
        download(hub, name, tmp_path / "files")
    for place in (hub, hub.parent):
        assert refused(place) == "is a cache of models; name one of them: one/a, two/b--c"
    (hub / "models--three--empty" / "snapshots").mkdir(parents=True)
    assert refused("three/empty") == "has no snapshot; download it: hf download three/empty"


def archive(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.add(__file__, "x")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes": (lambda path: path.write_text("some text"), "is a file of text; name the folder of a downloaded model"),
    "ggml-model.bin": (
        lambda path: path.write_bytes(b"tjgg\1\0\0\0"),
        "is a file of before GGUF, which is not read",
    ),
    "mistral.tar": (archive, "is an archive; unpack it, and name the folder that it makes"),
    "mistral": (archive, "is an archive; unpack it, and name the folder that it makes"),
    "pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "optimizer.pt": (lambda path: path.write_bytes(b"PK\0"), "is what a training run keeps beside its weights; name"),
    "training_args.bin": (lambda path: path.write_bytes(b"PK\0"), "is what a training run keeps beside its weights;"),
    "mine.safetensors": (lambda path: path.write_bytes(b"\0"), "is no weight file by its name (consolidated.*, mod"),
    "binary": (lambda path: path.write_bytes(b"\0\1"), "is a file; name the folder that holds a model"),
    "nothing": (lambda path: path.touch(), "is a file; name the folder that holds a model"),
    "pipe": (os.mkfifo, "is no folder; name the folder of a downloaded model"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    make, line = FILES[name]
    make(tmp_path / name)
    assert refused(tmp_path / name).startswith(line)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("", "is an empty name; name the folder"),
        ("/dev/zero", "is no folder; name"),
        ("a" * 5000, "cannot be accessed (File name too long)"),
        ("a\0b", "no such folder; name"),
        ("Tell me a story", "no such folder; the checkpoint's folder comes first, and text goes into an option"),
    ],
)
def test_what_is_no_path_is_refused(place: str, line: str) -> None:
    assert refused(place).startswith(line)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mmproj-model-f16.gguf", "holds mmproj-model-f16.gguf, a GGUF file; name it"),
        ("mistral-7B-v0.1.tar", "holds the archive mistral-7B-v0.1.tar; unpack it, and name the folder that it makes"),
        ("zero_to_fp32.py", "holds a training run's state in parts; join them with its zero_to_fp32.py"),
        ("inside/config.json", "holds no model itself; name "),
    ],
)
def test_a_folder_that_holds_something_else_is_called_what_it_is(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert refusal(tmp_path).startswith(f"{tmp_path}: {line}")


def test_every_way_in_takes_a_place(
    tmp_path: Path, hub: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = download(hub, "org/name", write_model(tmp_path / "files"))
    assert Tokenizer.from_folder("org/name").file == snapshot / "tokenizer.model.v3"
    assert Tokenizer.from_folder(snapshot.parents[1]).file == snapshot / "tokenizer.model.v3"
    run = CommandLine(capsys, monkeypatch)
    for place in ("org/name", snapshot / "consolidated.safetensors", snapshot.parents[1]):
        assert run("info", place).out.startswith(f"{snapshot}\nweights       consolidated.safetensors")
        assert run("demo", place, "--max_tokens", 1, "--prompts", "Tom").code == 0
    assert "GGUF files have one window" in run("quantize", "org/name", tmp_path / "quantized.gguf").error
    assert run("score", "org/none", "-", stdin=b"Tom").error.endswith("hf download org/none --local-dir none")
    assert "--lora org/none: no such folder, and no such model" in run("demo", "org/name", "--lora", "org/none").error
