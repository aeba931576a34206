"""The demo command: prompts completed together and shown in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mistral.cli.console import RULE, Board
from mistral.cli.demo import PROMPTS
from tests.support.command_line import CommandLine, run_program, write_model

pytestmark = pytest.mark.usefixtures("all_compiled")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


def results(out: str) -> list[dict[str, Any]]:
    """The answers of --json by their index, the timings left out."""
    lines = [json.loads(line) for line in out.splitlines()]
    assert list(lines.pop()) == ["timings"]
    assert all(list(line) == ["index", "prompt", "text", "ids", "finish_reason"] for line in lines)
    return sorted(lines, key=lambda line: int(line["index"]))


def blocks(out: str) -> list[str]:
    """The answers of plain output, prompts included."""
    *texts, end = out.split(f"\n{RULE}\n")
    assert end == ""
    return texts


# The board


def test_the_first_text_is_shown_as_it_grows_and_the_others_wait(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(["a:", "b:", "c:"])
    shown = []
    for index, text, finished in [
        (2, "7", False), (0, "1", False), (1, "4", True), (0, "2", False), (2, "8", True), (0, "", True),
    ]:  # fmt: skip
        board.add(index, text, finished)
        shown.append(capsys.readouterr().out)
    assert shown == ["a:", "1", "", "2", "", f"\n{RULE}\nb:4\n{RULE}\nc:78\n{RULE}\n"]


def test_a_text_that_follows_a_finished_one_goes_on_growing(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(["a", "b"])
    board.add(0, "1", True)
    board.add(1, "2", False)
    board.add(1, "3", True)
    assert capsys.readouterr().out == f"a1\n{RULE}\nb23\n{RULE}\n"


# The command


def test_each_prompt_is_printed_with_its_answer_and_a_rule(run: CommandLine, model: Path) -> None:
    outcome = run("demo", model)
    assert outcome.code == 0
    for prompt, block in zip(PROMPTS, blocks(outcome.out), strict=True):
        assert block.startswith(prompt) and len(block) > len(prompt)
    assert outcome.err.count("\n") == 1
    assert all(word in outcome.err for word in ("load ", "prefill ", "decode ", "tokens/s"))


def test_json_agrees_with_plain_output(run: CommandLine, model: Path) -> None:
    plain, answers = run("demo", model, "--max_tokens=12"), run("demo", model, "--max_tokens=12", "--json")
    assert answers.err == ""
    assert blocks(plain.out) == [answer["prompt"] + answer["text"] for answer in results(answers.out)]
    assert all(len(a["ids"]) == 12 and a["finish_reason"] == "length" for a in results(answers.out))
    timings = json.loads(answers.out.splitlines()[-1])["timings"]
    assert timings["prefill_tokens"] > 3 and timings["decode_tokens"] == 3 * 12
    drafted, accepted = timings.pop("drafted_tokens", 1), timings.pop("accepted_tokens", 0)
    assert 0 <= accepted <= drafted and min(timings.values()) > 0


def test_answers_keep_their_order_although_they_finish_at_different_times(run: CommandLine, model: Path) -> None:
    whole = results(run("demo", model, "--json", "--max_tokens=20").out)
    stop = whole[2]["text"][2:5]  # ends the last answer almost at once
    stopped = results(run("demo", model, "--json", "--max_tokens=20", f"--stop={stop}").out)
    assert (stopped[2]["text"], stopped[2]["finish_reason"]) == (whole[2]["text"][:2], "stop")
    assert len({len(answer["ids"]) for answer in stopped}) > 1
    plain = blocks(run("demo", model, "--max_tokens=20", f"--stop={stop}").out)
    assert plain == [answer["prompt"] + answer["text"] for answer in stopped]


def test_any_number_of_prompts_is_completed_as_if_alone(run: CommandLine, model: Path) -> None:
    """More prompts than rows, long ones among short ones."""
    texts = [f"{number} and on " * (1 + number % 7) for number in range(70)]
    answers = results(run("demo", model, "--json", "--max_tokens=3", f"--prompts={json.dumps(texts)}").out)
    assert [answer["prompt"] for answer in answers] == texts
    for number in (0, 6, 69):
        alone = results(run("demo", model, "--json", "--max_tokens=3", f"--prompts={texts[number]}").out)
        assert alone[0]["ids"] == answers[number]["ids"]


def test_chunk_size_and_threads_change_nothing(run: CommandLine, model: Path) -> None:
    whole = run("demo", model, "--max_tokens=5").out
    for size in (1, 5, 6, 10**30):
        assert run("demo", model, "--max_tokens=5", f"--chunk_size={size}").out == whole
    assert run("demo", model, "--max_tokens=5", "--threads=1", "--backend=portable", "--device=CPU").out == whole


def test_the_same_seed_gives_the_same_text_and_another_seed_another(run: CommandLine, model: Path) -> None:
    command = ("demo", model, "--max_tokens=5")
    filters = ("--temperature=1", "--top_p=0.95", "--top_k=500", "--min_p=0.0001")

    def sampled(*seed: str) -> str:
        return run(*command, *filters, *seed).out

    assert sampled("--seed=7") == sampled("--seed=7")
    assert len({sampled(), sampled("--seed=7"), sampled("--seed=8"), sampled(f"--seed={10**40}")}) == 4
    greedy = run(*command).out
    assert run(*command, "--seed=7").out == greedy, "greedy answers know no seed"
    assert run(*command, "--repetition_penalty=5").out != greedy


def test_no_new_tokens_leave_the_prompts_as_they_are(run: CommandLine, model: Path) -> None:
    assert blocks(run("demo", model, "--max_tokens=0").out) == list(PROMPTS)
    for answer in results(run("demo", model, "--max_tokens=0", "--json").out):
        assert (answer["text"], answer["ids"], answer["finish_reason"]) == ("", [], "length")


def test_an_answer_ends_at_the_context_limit(run: CommandLine, model: Path) -> None:
    whole = results(run("demo", model, "--json", "--prompts=This is a test").out)[0]
    prompt_tokens = json.loads(run("demo", model, "--json", "--prompts=This is a test").out.splitlines()[-1])
    limit = prompt_tokens["timings"]["prefill_tokens"] + 4
    short = results(run("demo", model, "--json", "--prompts=This is a test", f"--max_context={limit}").out)[0]
    assert (short["ids"], short["finish_reason"]) == (whole["ids"][:4], "length")


def test_prompts_and_stops_come_from_files(run: CommandLine, model: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("from a file\n", encoding="utf-8")
    (tmp_path / "many").write_text(json.dumps(["é", f"@{tmp_path / 'one'}", "@@at"]), encoding="utf-8")
    answers = results(run("demo", model, "--json", "--max_tokens=9", f"--prompts=@{tmp_path / 'many'}").out)
    assert [answer["prompt"] for answer in answers] == ["é", "from a file", "@at"]
    stops = [answers[0]["text"][3:6], answers[1]["text"][2:5]]
    (tmp_path / "stops").write_text(json.dumps(stops), encoding="utf-8")
    command = ("demo", model, "--json", "--max_tokens=9", f"--prompts=@{tmp_path / 'many'}")
    stopped = results(run(*command, f"--stop=@{tmp_path / 'stops'}").out)
    assert [answer["finish_reason"] for answer in stopped[:2]] == ["stop", "stop"]
    assert not any(stop in answer["text"] for stop in stops for answer in stopped)


def test_a_prompt_out_of_a_pipe_is_read_once(model: Path) -> None:
    outcome = run_program("demo", model, "--max_tokens=0", shell="{} --prompts @<(echo hello) --stop @<(echo x)")
    assert (outcome.code, blocks(outcome.out)) == (0, ["hello"])


def test_the_checkpoint_that_ships_completes_the_prompts(run: CommandLine) -> None:
    """Words, whatever it was trained to say: this holds for any well trained model."""
    outcome = run("demo")
    assert outcome.code == 0
    for prompt, block in zip(PROMPTS, blocks(outcome.out), strict=True):
        answer = block.removeprefix(prompt)
        assert len(answer.split()) >= 3
        assert sum(c.isalpha() or c in " \n.,?!'\"" for c in answer) > 0.9 * len(answer)
