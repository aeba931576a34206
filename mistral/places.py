"""Finds a model: the folder or GGUF file for a name, which may be a path, a file, or org/name.

Hugging Face's client keeps a model in a cache entry, `models--org--name`, with `refs/main`, which holds the name of a
commit, and `snapshots/COMMIT`, whose files are links. Nothing here uses the network.
"""

from __future__ import annotations

import re
from pathlib import Path

from mistral.errors import InputError

# The files of a checkpoint or adapter; the name of one of them means its folder.
WEIGHTS = re.compile(r"(consolidated|model|pytorch_model)\b.*\.(safetensors|pth|pt|bin)")
ADAPTERS = ("lora.safetensors", "adapter_model.safetensors", "adapter_model.bin")
SETTINGS = re.compile(
    r"params\.json|(config|generation_config|adapter_config|tokenizer_config|tokenizer)\.json|tekken.*\.json"
    r"|tokenizer\.model.*|(model|pytorch_model)\..*index\.json"
)
TRAINING = re.compile(r"(optimizer|scheduler|scaler|trainer_state|training_args|rng_state.*|random_states.*)\.\w+")
REPOSITORY = re.compile(
    r"(https?://huggingface\.co/)?([\w-][\w.-]*/[\w-][\w.-]*)(@[\w./-]+|/tree/[\w.-]+/?|/)?", re.ASCII
)
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".xz", ".zst", ".7z")
GGUF = ".gguf"
FIRST_PART = re.compile(r"-\d{5}-of-(?=\d{5}\.gguf$)")
OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # magic bytes of formats before GGUF
SHOWN = 5  # most models of a cache in an error message


def find_checkpoint(place: str | Path, option: str | None = None) -> Path:
    """The folder that `place` names: itself, the folder of a weight file, or a model in the local Hugging Face cache.

    Or a GGUF file: the one that it names, or the only one in the folder, without other weights beside it. `~` is
    expanded. `place` may be the root of a cache entry, which means its snapshot, or org/name, optionally with
    @revision, if no folder has that name. `option`: the option that errors name. Raises InputError that says what is
    there instead, or how to download what is missing.
    """
    try:
        path = Path(place).expanduser()
        if not str(place):
            raise refusal("''", "is an empty name; name the folder of a downloaded model", option)
        if path.is_dir():
            return gguf_in(snapshot_in(path, option) or path, option)
        if path.exists():
            return folder_of(path, option)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise refusal(str(place)[:200], f"cannot be accessed ({reason}); name another folder", option) from None
    except RuntimeError:
        raise refusal(place, "no user of that name; write the whole path", option) from None
    return gguf_in(cached(str(place), option), option)


def gguf_in(folder: Path, option: str | None) -> Path:
    """The GGUF file in a folder, of a set the first; the folder itself if it has other weights or no such file.

    Raises InputError if there are several. With an `option`, which does not name a model, it is the folder.
    """
    names = [path.name for path in folder.iterdir()]
    models = {FIRST_PART.sub("-00001-of-", name) for name in names if name.endswith(GGUF) and "mmproj" not in name}
    if option or not models or any(WEIGHTS.fullmatch(name) for name in names):
        return folder
    if len(models) > 1:
        shown = ", ".join(sorted(models)[:SHOWN])
        more = f" and {len(models) - SHOWN} more" if len(models) > SHOWN else ""
        raise refusal(folder, f"holds several GGUF files; name one of them: {shown}{more}", option)
    return folder / models.pop()


def refusal(place: str | Path, message: str, option: str | None) -> InputError:
    """The error for a place, which is the value of `option` if that is given."""
    return InputError(f"{place}: {message}") if option is None else InputError(message, option=option, value=place)


def snapshot_in(folder: Path, option: str | None = None) -> Path | None:
    """The snapshot of a cache entry, or of its folder `snapshots`; None for any other folder.

    Raises InputError for an entry without a snapshot or with several of which none is main, and for a whole cache.
    """
    if folder.name == "snapshots" and (folder.parent / "refs").is_dir():
        return snapshot_of(folder.parent, None, option)
    if (folder / "snapshots").is_dir() and (repository_of(folder / "snapshots" / "x") or (folder / "refs").is_dir()):
        return snapshot_of(folder, None, option)
    hub = folder / "hub" if (folder / "hub").is_dir() else folder
    models = sorted(entry.name for entry in hub.glob("models--*--*") if entry.is_dir())
    if not models or any((folder / name).exists() for name in ("config.json", "params.json")):
        return None
    names = [name.removeprefix("models--").replace("--", "/", 1) for name in models]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise refusal(folder, f"is a cache of models; name one of them: {', '.join(names[:SHOWN])}{more}", option)


def snapshot_of(entry: Path, revision: str | None, option: str | None = None) -> Path:
    """The folder of a revision of a cache entry; None means main, or if that is not known the only one."""
    found = {path.name: path for path in (entry / "snapshots").iterdir() if path.is_dir()}
    ref = entry / "refs" / (revision or "main")
    commit = ref.read_bytes()[:100].decode("ascii", "replace").strip() if ref.is_file() else revision
    matches = [name for name in found if name == commit or (commit and len(commit) >= 7 and name.startswith(commit))]
    if len(matches) == 1:
        return found[matches[0]]
    if revision is None and len(found) == 1:
        return next(iter(found.values()))
    what = f"revision {revision} is not there" if revision else "which of several snapshots it is, is not said"
    what = what if found else "has no snapshot"
    repository = repository_of(entry / "snapshots" / "x")
    command = f"download it: {download_command(repository)}" if repository else "name a folder in its snapshots"
    raise refusal(entry, f"{what}; {command}", option)


def repository_of(snapshot: Path) -> str | None:
    """The org/name that a snapshot in a cache is of; None for any other folder."""
    entry = snapshot.absolute().parent.parent.name
    if snapshot.absolute().parent.name != "snapshots" or not entry.startswith("models--"):
        return None
    return entry.removeprefix("models--").replace("--", "/", 1)


def download_command(repository: str, folder: str | None = None) -> str:
    """The command that downloads a model, into the cache or into a folder."""
    return f"hf download {repository}{f' --local-dir {folder}' if folder else ''}"


def how_to_get(folder: Path, what: str = "") -> str:
    """How to get a file that a folder lacks: the whole command if the folder is a snapshot in a cache."""
    repository = repository_of(folder)
    return f"download it: {download_command(repository)}{f' {what}' if what else ''}" if repository else "download it"


def cached(place: str, option: str | None) -> Path:
    """The snapshot of org/name in the local cache. Raises InputError that says how to download it."""
    match = REPOSITORY.fullmatch(place)
    if match is None or ".." in place:
        what = f"no such folder; name {'the right one' if option else 'the folder of a downloaded model'}"
        if place.endswith(GGUF) and not option:
            what = "no such file; name a GGUF file or the folder of a downloaded model"
        if any(letter.isspace() for letter in place) and "/" not in place:
            what = "no such folder; the checkpoint's folder comes first, and text goes into an option of its own"
        raise refusal(place[:200], what, option)
    from huggingface_hub import constants

    repository, given = match[2], (match[3] or "").rstrip("/")
    revision = given.removeprefix("@").removeprefix("/tree/") or None
    entry = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    if (entry / "snapshots").is_dir():
        return snapshot_of(entry, revision, option)
    name = repository.partition("/")[2]
    command = download_command(f"{repository} --revision {revision}" if revision else repository, name)
    what = f"no such folder, and no such model in the cache {entry.parent}; download it: {command}"
    raise refusal(repository, what, option)


def folder_of(path: Path, option: str | None) -> Path:
    """The folder of a checkpoint's or adapter's file; a GGUF file itself. Raises InputError for any other."""
    name = path.name
    if path.is_file() and not option and (name.endswith(GGUF) or starts_as_gguf(path)):
        return path
    if path.is_file() and (WEIGHTS.fullmatch(name) or SETTINGS.fullmatch(name) or name in ADAPTERS):
        return path.parent
    raise refusal(path, kind_of(path), option)


def starts_as_gguf(path: Path) -> bool:
    """Whether a file starts with the magic bytes of GGUF, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def kind_of(path: Path) -> str:
    """The kind of a file that is not part of a checkpoint, and what to name instead."""
    if not path.is_file():  # a device or a pipe, which is not read
        return "is no folder; name the folder of a downloaded model"
    name, start = path.name, b""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"GGUF"):
        return "is a GGUF file, which holds a model; name a folder"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; run `git lfs pull` in its folder, and name that"
    if start[:4] in OLD_GGML:
        return "is a file of before GGUF, which is not read; convert the original weights again"
    if start[8:10] == b'{"' and not name.endswith(".safetensors"):
        return "is a safetensors file by what is in it; name the folder that it belongs to"
    if name.endswith(ARCHIVES) or start[257:262] == b"ustar" or (start[:4] == b"PK\3\4" and name.endswith(GGUF)):
        return "is an archive; unpack it, and name the folder that it makes"
    if TRAINING.fullmatch(name):
        return "is what a training run keeps beside its weights; name the folder of the weights"
    if name.endswith((".safetensors", ".pth", ".pt", ".bin")):
        return "is no weight file by its name (consolidated.*, model.*); name the folder of a downloaded model"
    if start and b"\0" not in start:
        return "is a file of text; name the folder of a downloaded model"
    return "is a file; name the folder that holds a model"


def contents_of(folder: Path, names: set[str]) -> str | None:
    """What a folder holds instead of a model, and what to do; None if that is not known."""
    for name in sorted(names):
        if name.endswith(GGUF):
            return f"holds {name}, a GGUF file; name it"
        if name.endswith(ARCHIVES):
            return f"holds the archive {name}; unpack it, and name the folder that it makes"
    if "zero_to_fp32.py" in names:
        return "holds a training run's state in parts; join them with its zero_to_fp32.py, and name the folder of that"
    inside = [
        name
        for name in sorted(names)
        if any((folder / name / file).is_file() for file in ("params.json", "config.json"))
    ]
    if inside:
        more = f" or one of {len(inside) - 1} more" if len(inside) > 1 else ""
        return f"holds no model itself; name {folder / inside[0]}{more}"
    return None
