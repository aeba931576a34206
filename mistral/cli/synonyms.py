"""Other programs' names for commands and options: their equivalents here, or a hint about what to use instead."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType

SAME: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "-m": ("ckpt",), "--model": ("ckpt",), "--model_path": ("ckpt",), "--model_dir": ("ckpt",),
    "--model_name_or_path": ("ckpt",), "--checkpoint": ("ckpt",), "--ckpt_path": ("ckpt",), "--ckpt_dir": ("ckpt",),
    "-p": ("prompt", "prompts"), "--prompt": ("prompts",),
    "-f": ("file", "@prompt", "@prompts"), "--file": ("@prompt", "@prompts"), "--prompt_file": ("@prompt", "@prompts"),
    "-n": ("max_tokens",), "--n_predict": ("max_tokens",), "--predict": ("max_tokens",),
    "--num_predict": ("max_tokens",), "--max_new_tokens": ("max_tokens",), "--max_completion_tokens": ("max_tokens",),
    "--max_gen_len": ("max_tokens",), "--max_output_tokens": ("max_tokens",),
    "--temp": ("temperature",), "--repeat_penalty": ("repetition_penalty",), "--rep_pen": ("repetition_penalty",),
    "-s": ("seed",), "--random_seed": ("seed",),
    "--stop_sequences": ("stop",), "--stop_strings": ("stop",), "--stop_words": ("stop",),
    "-c": ("max_context", "context"), "--ctx_size": ("max_context", "context"), "--n_ctx": ("max_context", "context"),
    "--num_ctx": ("max_context", "context"), "--context_size": ("max_context", "context"),
    "--context_length": ("max_context", "context"), "--max_model_len": ("max_context", "context"),
    "--max_seq_len": ("max_context", "context"), "--context": ("max_context",), "--max_context": ("context",),
    "-t": ("threads",), "--n_threads": ("threads",), "--num_threads": ("threads",),
    "-b": ("batch_size", "batch", "batches"), "--batch": ("batch_size", "batches"),
    "--batch_size": ("batch", "batches"),
    "--num_ranks": ("num_pipeline_ranks", "ranks"), "--ranks": ("num_pipeline_ranks",),
    "--num_pipeline_ranks": ("ranks",), "--pipeline_parallel_size": ("num_pipeline_ranks", "ranks"),
    "--pp": ("num_pipeline_ranks", "ranks"),
    "--adapter": ("lora",), "--adapter_path": ("lora",), "--lora_path": ("lora",), "--lora_dir": ("lora",),
    "-sys": ("system",), "--system_prompt": ("system",), "--chat": ("instruct",), "--conversation": ("instruct",),
    "-cnv": ("instruct",),
    "-i": ("input",), "--input_file": ("input",), "-o": ("out",), "--output": ("out",), "--output_file": ("out",),
    "--output_dir": ("out",), "--num_samples": ("n",), "--num_return_sequences": ("n",),
    "--top_logprobs": ("logprobs",),
    "-md": ("draft",), "--model_draft": ("draft",), "--draft_model": ("draft",), "--speculative_model": ("draft",),
    "--assistant_model": ("draft",),
})  # fmt: skip
"""By a name of other programs, the options that mean the same: the first that the command has is taken.

With @ before it, the option's text is in the file that is named. A command's own name comes before all of these.
"""

_DEVICE = "there are a CPU and Ascend to compute on; --device says which"
_BITS = "weights are used as stored in the file; --bits 8 or --bits 4 quantizes them while loading"
_MAPPED = "a checkpoint is always mapped; leave it out"
_SHAPE = "--temperature, --top_p, --top_k and --min_p shape the choice"
_SERVER = "it is an option of serve"
_RANKS = "layers are shared out: mpirun -n N ... --num_pipeline_ranks N"
INSTEAD: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(("-ngl", "--gpu_layers", "--n_gpu_layers", "--gpu", "--gpus", "--main_gpu", "--cuda",
                     "--device_map", "--gpu_memory_utilization"), _DEVICE),
    **dict.fromkeys(("-q", "--quantization", "--quantize", "--quant", "--dtype", "--torch_dtype", "--fp16", "--bf16",
                     "--half"), _BITS),
    "--load_in_8bit": "write --bits 8", "--load_in_4bit": "write --bits 4", "--q_bits": "write --bits 8 or --bits 4",
    "--fp32": "write --precise for activations in float32", "--float32": "write --precise for activations in float32",
    "--mmap": _MAPPED, "--no_mmap": _MAPPED, "--mlock": _MAPPED,
    "--stream": "text is always shown as it is written; leave it out",
    "--no_stream": "text is always shown as it is written; --json shows whole results",
    "-v": "notes and timings always go to standard error; leave it out",
    "--verbose": "notes and timings always go to standard error; leave it out",
    "--debug": "notes and timings always go to standard error; leave it out",
    "--port": _SERVER, "--host": _SERVER, "--api_key": _SERVER,
    "--tensor_parallel_size": _RANKS, "--tp": _RANKS, "--nproc_per_node": _RANKS, "--num_gpus": _RANKS,
    "--do_sample": "a --temperature above 0 samples", "--sample": "a --temperature above 0 samples",
    "--greedy": "--temperature 0 takes the likeliest token", "--num_beams": "there is no beam search; leave it out",
    "--frequency_penalty": "--repetition_penalty makes what occurred before less likely",
    "--presence_penalty": "--repetition_penalty makes what occurred before less likely",
    "--typical_p": _SHAPE, "--typical": _SHAPE, "--mirostat": _SHAPE, "--tfs": _SHAPE, "--top_a": _SHAPE,
    "--samplers": _SHAPE,
    "--max_length": "--max_tokens counts new tokens alone, --max_context prompt and answer together",
    "--trust_remote_code": "nothing in a checkpoint is ever run; leave it out",
    "--tokenizer": "the tokenizer is the one beside the weights; leave it out",
    "--tokenizer_path": "the tokenizer is the one beside the weights; leave it out",
    "--output_format": "--json gives JSON", "--format": "--json gives JSON",
    "-p": "complete and demo take it", "--prompt": "complete takes it", "-f": "complete and demo take it",
    "--interactive": "it is a command: interactive", "--verbose_prompt": "--json shows the prompt with the answer",
})  # fmt: skip
"""What to do instead of an option that other programs have, where nothing here means quite the same."""

COMMANDS: Mapping[str, str] = MappingProxyType({
    **dict.fromkeys(("chat", "repl", "talk", "instruct", "shell", "cli"), "interactive"),
    **dict.fromkeys(("run", "generate", "gen", "completion", "completions", "infer", "inference", "predict", "sample",
                     "batch", "prompt", "text"), "complete"),
    **dict.fromkeys(("eval", "evaluate", "perplexity", "ppl", "logprobs", "loglikelihood"), "score"),
    **dict.fromkeys(("convert", "quant", "quantise", "compress", "export"), "quantize"),
    **dict.fromkeys(("benchmark", "perf", "speed", "measure"), "bench"),
    **dict.fromkeys(("show", "inspect", "describe", "verify", "check", "stat", "list"), "info"),
    **dict.fromkeys(("example", "examples", "test"), "demo"), **dict.fromkeys(("server", "api", "openai"), "serve"),
})  # fmt: skip


def short_names(option: str) -> tuple[str, ...]:
    """Names of one dash for an option; of `prompts`, those of `prompt`."""
    return tuple(name for name, options in SAME.items() if name[1] != "-" and option in options)


def option_of(flag: str, known: Collection[str]) -> str | None:
    """The option, of those `known`, that another program's flag means; with @ before it where it names a file."""
    return next((name for name in SAME.get(flag, ()) if name.removeprefix("@") in known), None)


def option_hint(flag: str, known: Collection[str]) -> str:
    """What to do instead of a flag that is not known."""
    if flag in INSTEAD:
        return INSTEAD[flag]
    close = difflib.get_close_matches(flag.lstrip("-"), known, n=1)
    if not close:
        near = difflib.get_close_matches(flag, [name for name in SAME if name.startswith("--")], n=1, cutoff=0.8)
        found = option_of(near[0], known) if near else None
        close = [found.removeprefix("@")] if found else []
    return f"did you mean --{close[0]}?" if close else "--help lists the options"


def command_hint(name: str, known: Collection[str]) -> str:
    """What to do instead of a command that is not known."""
    if name.startswith("-"):
        return f"the command comes first, one of {', '.join(known)}"
    found = COMMANDS.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), known, n=1)), None)
    return f"did you mean {found}?" if found in known else f"the commands are {', '.join(known)}"
