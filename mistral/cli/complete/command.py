"""The complete command: one prompt shown as it is continued, or any number of them, each result as it is finished."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mistral.cli.complete.complete_options import CompleteOptions
from mistral.cli.complete.job import Job, complete
from mistral.cli.session import check_told, open_files, running
from mistral.pipeline.launch import launched


@dataclass(frozen=True)
class Complete(CompleteOptions):
    """Continue a prompt, fill in between two texts, or complete each line of a file.

    The prompt is --prompt, or standard input. A file given by --input has a JSON object in each line: "prompt", or
    "prompt" and "suffix", or "messages" for the chat template, with "tools" where wanted; an "id", and values of its
    own for max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty,
    logit_bias, min_tokens, ignore_eos, seed, stop, n, logprobs and reasoning_effort, and for what its answer must be:
    json_schema, response_format, regex or grammar. Lines of OpenAI's batch files ("custom_id" and "body") are taken
    too. Results are JSON, one a line, in the order in which they are finished; "index" counts the prompts. With --out
    FILE, a run that was interrupted goes on where it stopped when the same command is given again.
    """

    def run(self) -> None:
        """Read the prompts, load the model, complete. Raises InputError for what cannot be read or completed."""
        launch = launched()
        prompts = self.prompts() if launch is None or launch.rank == 0 else []
        opened, job = open_files(self, self.instruct, self.chat_template), None
        with opened.before_loading() as first:
            if first:
                if self.instruct:
                    check_told(opened.tokenizer, self.system, self.reasoning_effort)
                job = Job.prepared(self, prompts, opened)
        with running(replace(opened, options=job.options) if job else opened) as session:
            if session and job:
                complete(session, job)
