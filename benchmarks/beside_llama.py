"""This project and llama.cpp on one GGUF file, in turns of half a second, as JSON lines.

    python benchmarks/beside_llama.py MODEL.gguf [--parts decode:1,decode:8,prompt:512,answer] [--llama_python PYTHON]

`--llama_python` is the Python of an environment with llama-cpp-python. To compare what both do with the same
instructions, build that for AVX2 (CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON") and give
--machine=-march=x86-64-v3 here. decode:K: a token for each of K rows after prompts of 128; prompt:N: reading N tokens;
answer: tokens chosen at temperature 0.7 and top_p 0.95, one row after a prompt of 512. Beside `decode` a third
process reads as many bytes as a step needs from the same file: what memory allows at that moment. `llama_of_read` is
llama.cpp's share of it, and `of_llama_at_most` what `of_llama` would be if this project took the whole. --busy N: so
many other programs compute all the time.

Where memory's speed changes from second to second, figures of different minutes do not compare. So each process is
loaded once and waits for its turn, and a ratio is that of two turns that follow each other; the median of all counts.
The file is read into the system's cache first: as it comes from a disk, not in the small pages of a file just written.
`python -m main bench --shape mistral-7b --layers 4 --type Q4_0` makes such a file of random weights and says where.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PARTS = "decode:1,decode:8,prompt:512,answer"
PROMPT, CONTEXT, LONG = 128, 640, 512  # tokens before decoding; after which a row begins anew; before an answer
TEMPERATURE, TOP_P = 0.7, 0.95
BATCH = 2048  # tokens that llama.cpp is given at once, or a whole prompt
KNOWN = re.compile(r"(decode|prompt):[1-9][0-9]*|answer(:1)?")
Step = Callable[[], object]
Begin = Callable[[], Step]  # reads what comes before, which is not timed, and returns what a step is


def serve_turns(begin: Begin, steps_at_most: int) -> None:
    """Run as many steps as each line of standard input says; print the seconds that they took."""
    step, taken = begin(), 0
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        if taken + count > steps_at_most:
            step, taken = begin(), 0
        started = time.perf_counter()
        for _ in range(count):
            step()
        taken += count
        print(time.perf_counter() - started, flush=True)


def ours(options: argparse.Namespace, part: str, size: int) -> Begin:
    """A part's steps by this project: the model alone, or with `answer` the engine and its choice of tokens."""
    import numpy as np

    from mistral.checkpoint.checkpoint import open_checkpoint
    from mistral.engine.engine import Engine
    from mistral.engine.requests import Request
    from mistral.engine.sampling import SamplingSettings
    from mistral.engine.scheduler import Scheduler
    from mistral.load import build
    from mistral.ops.device import start_device
    from mistral.ops.native import Native

    start_device("CPU", options.threads)
    checkpoint = open_checkpoint(options.model)
    ops = Native(machine=(options.machine,)) if options.machine else Native()
    model = build(checkpoint, 16, ops, range(checkpoint.args.n_layers))
    random = np.random.default_rng(0)

    def some(count: int) -> list[int]:
        return [int(i) for i in random.integers(3, checkpoint.args.vocab_size, count)]

    def decode() -> Step:
        cache, ids = model.new_cache(), np.array(some(size))
        for row in range(size):
            cache.add(row, CONTEXT)
            model.forward(some(PROMPT), [PROMPT], cache, [row], np.array([PROMPT - 1])).asnumpy()

        def step() -> None:
            ids[:] = model.forward(ids, [1] * size, cache, list(range(size))).asnumpy().argmax(1)

        return step

    def prompt() -> Step:
        def step() -> None:
            cache = model.new_cache()
            cache.add(0, size)
            model.forward(some(size), [size], cache, [0], np.array([size - 1])).asnumpy()

        return step

    def answer() -> Step:
        scheduler = Scheduler(Engine(model))
        settings = SamplingSettings(temperature=TEMPERATURE, top_p=TOP_P, seed=1)
        scheduler.submit(Request(some(LONG), CONTEXT, settings))
        while not scheduler.step():
            pass
        return scheduler.step

    return {"decode": decode, "prompt": prompt, "answer": answer}[part]


def llama(options: argparse.Namespace, part: str, size: int) -> Begin:
    """The same by llama-cpp-python: its low-level interface, or with `answer` its class `Llama`."""
    import llama_cpp
    import numpy as np

    random = np.random.default_rng(0)
    if part == "answer":
        whole = llama_cpp.Llama(
            str(options.model), n_ctx=LONG + CONTEXT, n_threads=options.threads, n_threads_batch=options.threads,
            verbose=False,
        )  # fmt: skip

        def answer() -> Step:
            whole.reset()
            whole.eval([int(i) for i in random.integers(3, whole.n_vocab(), LONG)])
            return lambda: whole.eval([whole.sample(temp=TEMPERATURE, top_p=TOP_P, top_k=0, min_p=0.0)])

        return answer

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(options.model).encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = size if part == "decode" else 1
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = rows * CONTEXT + size, max(BATCH, size), rows
    settings.n_threads = settings.n_threads_batch = options.threads
    settings.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(max(BATCH, size), 0, rows)

    def run(ids: list[int], row: int | None, first: int) -> None:
        """Tokens of one row from position `first` on, or of all rows one each."""
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i] = first if row is None else first + i
            batch.seq_id[i][0] = i if row is None else row
            batch.logits[i] = row is None or i == len(ids) - 1
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_synchronize(context)

    def some(count: int) -> list[int]:
        return [int(i) for i in random.integers(3, vocabulary, count)]

    def likeliest(i: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, i)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def decode() -> Step:
        llama_cpp.llama_memory_clear(memory, True)
        for row in range(size):
            run(some(PROMPT), row, 0)
        ids, at = some(size), [PROMPT]

        def step() -> None:
            run(ids, None, at[0])
            ids[:], at[0] = [likeliest(i) for i in range(size)], at[0] + 1

        return step

    def prompt() -> Step:
        def step() -> None:
            llama_cpp.llama_memory_clear(memory, True)
            run(some(size), 0, 0)
            likeliest(-1)

        return step

    return decode if part == "decode" else prompt


def read(options: argparse.Namespace, part: str, size: int) -> Begin:
    """Reading the bytes that a step needs, from the end of the file, by the kernels of this machine."""
    import numpy as np

    from mistral.checkpoint.checkpoint import open_checkpoint
    from mistral.checkpoint.weight_memory import used_nbytes
    from mistral.cli.bench.roofline import decode_nbytes
    from mistral.ops import build

    checkpoint = open_checkpoint(options.model)
    needed = int(decode_nbytes(checkpoint.args, used_nbytes(checkpoint, 16, "native"), size, 0))
    library = build.kernels().load(lambda path: ctypes.CDLL(str(path)))
    library.read_memory.restype = ctypes.c_float
    data = np.memmap(options.model, np.float32, mode="r", shape=(options.model.stat().st_size // 4,))
    last = data[-(needed // 4) // 1024 * 1024 :]
    step = lambda: library.read_memory(ctypes.c_void_p(last.ctypes.data), ctypes.c_int64(last.size))  # noqa: E731
    return lambda: step


class Contender:
    """A process that waits for its turns."""

    def __init__(self, name: str, options: argparse.Namespace, part: str, size: int) -> None:
        """`name`: ours, llama or read."""
        python = options.llama_python if name == "llama" else sys.executable
        command = [python, __file__, str(options.model), "--worker", name, "--parts", f"{part}:{size}"]
        command += ["--threads", str(options.threads), f"--machine={options.machine}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        self.name, self.tokens = name, 1 if part == "answer" else size
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=options.errors, text=True, env=environment
        )
        self.speeds: list[float] = []
        if self.line() != "ready":
            print(f"error: {name} did not start; --verbose shows why", file=sys.stderr)
            sys.exit(2)
        self.count = max(1, round(options.seconds / (self.turn(2) / 2)))

    def line(self) -> str:
        """The process's next line."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def turn(self, count: int) -> float:
        """The seconds of `count` steps."""
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.line())

    def take_turn(self) -> None:
        """Steps for about as long as a turn is to be; notes tokens a second."""
        self.speeds.append(self.tokens * self.count / self.turn(self.count))

    def end(self) -> None:
        """Wait for the process's end."""
        self.process.communicate()


def compare(options: argparse.Namespace, part: str, size: int) -> Iterator[dict[str, object]]:
    """One line for a part: tokens a second of each, and the ratios of neighbouring turns."""
    names = ["ours", "llama", "read"] if part == "decode" else ["ours", "llama"]
    contenders = [Contender(name, options, part, size) for name in names]
    for turn in range(options.turns):
        for contender in contenders if turn % 2 == 0 else contenders[::-1]:
            contender.take_turn()
    found: dict[str, object] = {"model": options.model.name, "part": f"{part}:{size}", "turns": options.turns}
    mine, *others = contenders
    for contender in contenders:
        contender.end()
        found[f"{contender.name}_per_second"] = round(statistics.median(contender.speeds), 2)
    for other in others:
        ratios = [a / b for a, b in zip(mine.speeds, other.speeds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[f"of_{other.name}"] = round(middle, 3)
        found[f"of_{other.name}_quartiles"] = [round(low, 3), round(high, 3)]
    if part == "decode":
        shares = [a / b for a, b in zip(contenders[1].speeds, contenders[2].speeds, strict=True)]
        found["llama_of_read"] = round(statistics.median(shares), 3)
        found["of_llama_at_most"] = round(1 / statistics.median(shares), 3)
    yield found


def read_from_disk(path: Path) -> None:
    """Let the system forget its copy of a file, and read it again."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 24):
            pass


def main() -> None:
    """Compare, and print; or be one of the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--parts", default=PARTS)
    parser.add_argument("--llama_python", default=sys.executable)
    parser.add_argument("--machine", default="", help="compiler flag of our kernels; when left out, for this machine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--busy", type=int, default=0, help="programs that compute beside both")
    parser.add_argument("--verbose", action="store_true", help="show what the processes say")
    parser.add_argument("--worker", choices=("ours", "llama", "read"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.errors = None if options.verbose else subprocess.DEVNULL
    if not all(map(KNOWN.fullmatch, options.parts.split(","))):
        parser.error(f"--parts {options.parts}: must be written as in {PARTS}")
    parts = [(name, int(size or 1)) for name, _, size in (part.partition(":") for part in options.parts.split(","))]
    if options.worker:
        part, size = parts[0]
        begin = {"ours": ours, "llama": llama, "read": read}[options.worker](options, part, size)
        return serve_turns(begin, sys.maxsize if part == "prompt" or options.worker == "read" else CONTEXT - PROMPT - 1)
    if not options.model.is_file():
        parser.error(f"{options.model}: no such file; name a GGUF file")
    read_from_disk(options.model)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        for part, size in parts:
            for line in compare(options, part, size):
                print(json.dumps(line | ({"busy": options.busy} if options.busy else {})), flush=True)
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()
