"""The page in a real browser against a real server: chat, stop, what is kept, what goes wrong, a phone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from mistral.cli.model_options import shipped_checkpoint
from tests.support.browser import browser
from tests.support.local_server import LocalServer, local_server
from tests.support.thinking_script import NOON, THOUGHT

QUESTION = "Tom got a green bell. What colour was the bell?"
ANSWER = "The bell was green."
CHAT, MODELS = "**/v1/chat/completions", "**/v1/models"
PHONE = {"width": 320, "height": 640}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
MARKDOWN = """# One *title*

Text with `a < b`, **bold**, _slanted_, ~~gone~~, snake_case_name and 2 * 3 * 4.
The next line <img src=x onerror="document.title='broken'"> [site](https://example.org/a_b) [bad](javascript:alert(1))

1. first
   - within
2. second

| a | b |
|---|--:|
| <b>1</b> | 2 |

> said

```python
if a < b:
    pass
```
***
![picture](https://example.org/p.png) <script>document.title = 'broken'</script>
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Browser, server: LocalServer) -> Iterator[Page]:
    """The page in a browser that has nothing kept; it must not have said anything of faults or of the policy."""
    with opened(chromium, server) as page:
        yield page


@pytest.fixture
def phone(chromium: Browser, server: LocalServer) -> Iterator[Page]:
    with opened(
        chromium, server, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark"
    ) as page:  # fmt: skip
        yield page


@contextmanager
def opened(chromium: Browser, server: LocalServer, **options: Any) -> Iterator[Page]:
    context, faults = chromium.new_context(**options), list[str]()
    context.set_default_timeout(30_000)
    expect.set_options(30_000)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "olicy" in message.text else None)
    page.goto(server.url)
    yield page
    context.close()
    assert not faults


def send(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def ask(page: Page, text: str = QUESTION, answer: str = ANSWER) -> None:
    """Send a message and wait for the whole answer."""
    send(page, text)
    expect(answers(page).last.locator(".md")).to_have_text(answer)
    expect(page.locator("#send")).to_have_text("Send")


def answers(page: Page) -> Any:
    return page.locator("article.assistant")


FLOOD = """() => {
  const frame = new TextEncoder().encode('data: {"choices": [{"index": 0, "delta": {"content": "again "}}]}\\n\\n');
  window.given = 0;
  window.fetch = async (_, { signal } = {}) => new Response(new ReadableStream({
    pull(stream) { signal?.throwIfAborted(); window.given++; stream.enqueue(frame); },
  }), { headers: { "content-type": "text/event-stream" } });
}"""
UNDRAWN = "() => { window.requestAnimationFrame = () => 1; }"


def endless(route: Route) -> None:
    """The request, for an answer that does not end by itself."""
    route.continue_(
        post_data=json.dumps(json.loads(route.request.post_data or "") | {"ignore_eos": True, "max_tokens": 100_000})
    )


def sent(page: Page, action: Any) -> Any:
    """The body of the request that an action leads to."""
    with page.expect_request(CHAT) as found:
        action()
    return json.loads(found.value.post_data or "")


def stream(text: str) -> str:
    """A stream that says a text, in pieces."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": text[i : i + 9]} for i in range(0, len(text), 9))]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"


def says(body: str) -> Callable[[Route], None]:
    """What answers a request with a stream."""
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


# Chat


def test_a_conversation_its_figures_and_what_is_sent(page: Page) -> None:
    expect(page.locator("#model")).to_have_text("tiny")
    page.keyboard.press("Control+,")
    for name, value in (("System prompt", "Be short."), ("Temperature", "0"), ("Max tokens", "40"), ("Seed", "7")):
        page.get_by_label(name).fill(value)
    page.get_by_role("button", name="Done").click()
    body = sent(page, lambda: send(page, QUESTION))
    expected = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    assert body == {
        "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": 40, "seed": 7,
        "messages": expected,
    }  # fmt: skip
    expect(answers(page).locator(".md")).to_have_text(re.compile("."))
    expect(answers(page).locator(".figures")).to_have_text(re.compile(r"^\d+ tokens( · [\d.]+ tokens/s)?"))
    expect(page.locator("#live")).to_have_text("The answer is complete")
    expect(page).to_have_title(QUESTION)
    page.get_by_label("Message", exact=True).fill("one")
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_label("Message", exact=True)).to_have_value("one\n")


def test_wrong_settings_are_not_taken(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("9")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#settings-error")).to_contain_text("Temperature: ")
    page.get_by_label("Temperature").fill("")
    page.get_by_label("Tools").fill("{")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#settings-error")).to_contain_text("Tools: ")
    page.keyboard.press("Escape")
    assert "tools" not in sent(page, lambda: send(page, QUESTION))


def test_a_stream_is_seen_and_stopped_and_the_server_is_free_again(page: Page, server: LocalServer) -> None:
    page.route(CHAT, endless)
    send(page, QUESTION)
    expect(answers(page).locator(".md")).to_contain_text("The bell was green.")
    expect(page.locator("#send")).to_have_text("Stop")
    expect(page.locator("#log")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#log .note").last).to_have_text("You stopped this answer.")
    server.wait_until_idle()
    page.unroute(CHAT)
    begun = answers(page).locator(".md").inner_text()
    body = sent(page, lambda: page.get_by_role("button", name="Go on").click())
    assert body["messages"][-1]["prefix"] is True and begun[:19] == body["messages"][-1]["content"][:19]
    expect(page.locator("#send")).to_have_text("Send")
    assert answers(page).locator(".md").inner_text().startswith(begun[:19])
    page.route(CHAT, endless)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#send")).to_have_text("Stop")
    expect(answers(page).locator(".md")).to_contain_text("The bell was green.")
    page.locator("#send").click()
    expect(page.locator("#log .note").last).to_have_text("You stopped this answer.")
    server.wait_until_idle()


@pytest.mark.parametrize("drawn", [True, False])
def test_a_stream_that_never_waits_is_drawn_and_stopped(chromium: Browser, server: LocalServer, drawn: bool) -> None:
    """More is always there to read. Without `drawn`, as while a page is hidden, the browser never draws."""
    with opened(chromium, server) as page:
        page.evaluate(UNDRAWN if not drawn else "0")
        page.evaluate(FLOOD)
        send(page, QUESTION)
        if drawn:
            expect(answers(page).locator(".md")).to_contain_text("again again")
        page.wait_for_function("given > 100")
        page.keyboard.press("Escape")
        expect(page.locator("#send")).to_have_text("Send")


def test_a_message_is_edited_and_an_answer_is_tried_again(page: Page) -> None:
    ask(page)
    body = sent(page, lambda: page.get_by_role("button", name="Retry").click())
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#send")).to_have_text("Send")
    page.get_by_label("Message", exact=True).press("ArrowUp")
    field = page.get_by_label("Text of the message")
    expect(field).to_have_value(QUESTION)
    field.fill(QUESTION.replace("green", "red"))
    field.press("Enter")
    expect(answers(page).locator(".md")).to_have_text("The bell was red.")
    expect(page.locator("article")).to_have_count(2)
    expect(page.locator("#send")).to_have_text("Send")
    answers(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Text of the message").fill("It was *blue*.")
    page.get_by_role("button", name="Save").click()
    expect(answers(page).locator("em")).to_have_text("blue")


def test_thoughts_are_folded_and_calls_are_answered(chromium: Browser, thinker: LocalServer) -> None:
    with opened(chromium, thinker) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Tools").fill(json.dumps(TOOLS))
        page.get_by_role("button", name="Done").click()
        send(page, "What time is it?")
        expect(page.locator("details.thoughts summary")).to_have_text("Thoughts")
        expect(page.locator("details.thoughts .text")).to_be_hidden()
        page.locator("details.thoughts summary").click()
        expect(page.locator("details.thoughts .text")).to_have_text(THOUGHT)
        expect(page.locator("details.call summary")).to_have_text("Call of now")
        page.get_by_label("Result of now").fill("12:00")
        body = sent(page, lambda: page.get_by_role("button", name="Give").click())
        _, called, result = body["messages"]
        assert called["reasoning_content"] == THOUGHT and called["tool_calls"][0]["function"]["name"] == "now"
        assert result == {"role": "tool", "content": "12:00", "tool_call_id": called["tool_calls"][0]["id"]}
        expect(answers(page).last.locator(".md")).to_have_text(NOON.replace("*", ""))


# What is shown


def test_markdown_is_shown_and_html_is_text(page: Page) -> None:
    page.route(CHAT, says(stream(MARKDOWN)))
    send(page, "Show")
    expect(page.locator("#send")).to_have_text("Send")
    shown = answers(page).locator(".md")
    for selector, text in {
        "h1": "One title", "h1 em": "title", "p code": "a < b", "strong": "bold", "p > em": "slanted", "s": "gone",
        "ol > li > ul > li": "within", "th:nth-child(2)": "b", "td.right": "2", "blockquote p": "said",
        "figcaption span": "python", "pre code": "if a < b:\n    pass",
    }.items():  # fmt: skip
        expect(shown.locator(selector)).to_have_text(text)
    expect(shown.locator("ol > li")).to_have_count(2)
    expect(shown.locator("hr")).to_have_count(1)
    for text in (
        "<img src=x onerror=\"document.title='broken'\">", "<b>1</b>", "[bad](javascript:alert(1))",
        "<script>document.title = 'broken'</script>", "snake_case_name and 2 * 3 * 4",
    ):  # fmt: skip
        expect(shown).to_contain_text(text)
    expect(shown.locator("img, script, b")).to_have_count(0)
    links = shown.locator("a").evaluate_all("nodes => nodes.map(node => [node.textContent, node.href, node.rel])")
    safe = "noopener noreferrer nofollow"
    assert links == [["site", "https://example.org/a_b", safe], ["picture", "https://example.org/p.png", safe]]
    expect(page).to_have_title("Show")


def test_code_and_answers_are_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.route(CHAT, says(stream("```\na = 1\n```")))
    send(page, "Show")
    for name, text in (("Copy the code", "a = 1"), ("Copy", "```\na = 1\n```")):
        answers(page).get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#live")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == text


def test_a_growing_answer_keeps_its_blocks(page: Page) -> None:
    """Each beginning of a text is shown as the same text at once would be."""
    same = page.evaluate(
        """text => {
            const grown = document.createElement("div"), whole = document.createElement("div");
            for (let end = 1; end <= text.length; end++) {
                showMarkdown(grown, text.slice(0, end));
                whole.sources = null;
                whole.replaceChildren();
                showMarkdown(whole, text.slice(0, end));
                if (!grown.isEqualNode(whole)) return text.slice(0, end);
            }
            return true;
        }""",
        MARKDOWN,
    )
    assert same is True


def test_hostile_markdown_ends(page: Page) -> None:
    for text in (
        "*" * 50_000,
        "[" * 50_000,
        "> " * 20_000,
        "`a" * 20_000,
        "**a " * 20_000,
        "- " * 10_000,
        "|" * 20_000,
    ):
        length = "text => { const node = el('div'); showMarkdown(node, text); return node.textContent.length }"
        assert page.evaluate(length, text) >= 0


def test_a_phone_has_no_scrolling_sideways(phone: Page) -> None:
    wide = f"{MARKDOWN}\n\n{'x' * 300}\n\n```\n{'y' * 300}\n```\n\n|{'|'.join(['long cell'] * 30)}|\n|{'---|' * 30}\n"
    phone.route(CHAT, says(stream(wide)))
    send(phone, "w" * 200)
    expect(answers(phone).locator("table")).to_have_count(2)
    widths = "[document.documentElement.scrollWidth, document.getElementById('scroller').scrollWidth, innerWidth]"
    assert phone.evaluate(widths) == [320, 320, 320]
    expect(phone.locator("#chats")).to_be_hidden()
    phone.get_by_role("button", name="Chats").click()
    expect(phone.get_by_role("button", name="New")).to_be_focused()
    phone.keyboard.press("Escape")
    expect(phone.locator("#chats")).to_be_hidden()
    phone.locator("#more summary").click()
    phone.locator("#settings-entry").click()
    expect(phone.get_by_label("Temperature")).to_be_visible()
    assert phone.evaluate("document.getElementById('settings').scrollWidth <= innerWidth")


def test_dark_and_light(phone: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = phone.evaluate(colour)
    phone.get_by_role("button", name="Chats").click()
    for name in ("Theme: system", "Theme: light"):
        phone.get_by_role("button", name=name).click()
        assert (phone.evaluate(colour) == dark) == (name == "Theme: light")
    phone.reload()
    expect(phone.locator("html")).to_have_attribute("data-theme", "dark")


# What is kept


def test_conversations_are_kept_renamed_and_deleted(page: Page) -> None:
    ask(page)
    page.keyboard.press("Control+k")
    ask(page, QUESTION.replace("bell", "kite"), "The kite was green.")
    page.reload()
    expect(answers(page).locator(".md")).to_have_text("The kite was green.")
    conversations = page.locator("#list button")
    expect(conversations).to_have_count(2)
    page.keyboard.press("Alt+ArrowDown")
    expect(answers(page).locator(".md")).to_have_text(ANSWER)
    page.locator("#more summary").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name of the conversation").fill("Bells")
    page.keyboard.press("Enter")
    expect(page).to_have_title("Bells")
    page.locator("#more summary").click()
    page.get_by_role("button", name="Delete").click()
    expect(conversations).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(conversations).to_have_text([re.compile("kite"), "Bells"])
    page.locator("#more summary").click()
    page.get_by_role("button", name="Delete").click()
    page.reload()
    expect(conversations).to_have_text([re.compile("kite")])


def test_an_answer_that_was_being_written_is_kept_as_far_as_it_came(page: Page, server: LocalServer) -> None:
    page.route(CHAT, endless)
    send(page, QUESTION)
    expect(answers(page).locator(".md")).to_contain_text("The bell was green.")
    page.reload()
    expect(answers(page).locator(".md")).to_contain_text("The bell was green.")
    expect(page.locator("#log .note").last).to_contain_text("interrupted")
    server.wait_until_idle()


def test_export_and_import(page: Page, chromium: Browser, server: LocalServer, tmp_path: Path) -> None:
    ask(page)
    page.locator("#more summary").click()
    with page.expect_download() as markdown:
        page.get_by_role("button", name="Export as Markdown").click()
    assert markdown.value.path().read_text() == f"# {QUESTION}\n\n## You\n\n{QUESTION}\n\n## Answer\n\n{ANSWER}\n"
    with page.expect_download() as exported:
        page.get_by_role("button", name="Export all").click()
    file, other = tmp_path / "conversations.json", tmp_path / "other.json"
    exported.value.save_as(file)
    other.write_text('{"conversations": [{"messages": 3}]}')
    with opened(chromium, server) as fresh:
        fresh.locator("#file").set_input_files(other)
        expect(fresh.get_by_role("alert")).to_contain_text("other.json has no conversations of this page")
        for told in ("1 conversation imported.", "0 conversations imported, 1 were here already."):
            fresh.locator("#file").set_input_files(file)
            expect(fresh.get_by_role("alert").get_by_text(told)).to_be_visible()
        fresh.locator("#list button").click()
        expect(answers(fresh).locator(".md")).to_have_text(ANSWER)


# What goes wrong


def test_a_key_is_asked_for_and_kept_for_the_tab(chromium: Browser) -> None:
    with local_server(shipped_checkpoint(), api_keys=("first-key",)) as guarded, opened(chromium, guarded) as page:
        field = page.get_by_label("Key", exact=True)
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The key was not right.")).to_be_visible()
        field.fill("first-key")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("tiny")
        ask(page)
        page.reload()
        expect(page.locator("#model")).to_have_text("tiny")
        assert "first-key" not in page.evaluate("JSON.stringify(localStorage)")
        page.evaluate("sessionStorage.removeItem('mistral.key')")
        send(page, QUESTION)
        expect(page.get_by_text("This server answers only with a key.")).to_be_visible()
        field.fill("first-key")
        page.keyboard.press("Enter")
        expect(answers(page).last.locator(".md")).to_have_text(re.compile("."))
        expect(page.locator("#send")).to_have_text("Send")


def test_a_full_queue_is_waited_for(page: Page) -> None:
    refused = {"error": {"message": "3 answers are under way", "code": "queue_full"}}
    times = list[int]()

    def full_once(route: Route) -> None:
        times.append(1)
        if len(times) > 1:
            route.continue_()
        else:
            route.fulfill(status=429, json=refused, headers={"retry-after": "1"})

    page.route(CHAT, full_once)
    send(page, QUESTION)
    expect(page.get_by_role("alert")).to_contain_text("The server is busy. Asking again in 1 s.")
    expect(answers(page).locator(".md")).to_have_text(ANSWER)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (503, "the server is ending", "The server takes no requests: the server is ending. Try again when"),
        (400, "top_p: must be at most 1", "The server refuses the request: top_p: must be at most 1"),
        (500, "the engine has failed", "The server has failed over this request: the engine has failed"),
    ],
)  # fmt: skip
def test_errors_in_words(page: Page, status: int, message: str, words: str) -> None:
    page.route(CHAT, lambda route: route.fulfill(status=status, json={"error": {"message": message}}))
    send(page, QUESTION)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(answers(page)).to_have_count(0)
    page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    expect(answers(page).locator(".md")).to_have_text(ANSWER)


def test_the_share_of_the_context_and_one_that_is_full(
    page: Page, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service.engine, "context_limit", 25)
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny · context of 25 tokens")
    ask(page)
    expect(answers(page).locator(".figures")).to_contain_text("5 tokens")
    expect(answers(page).locator(".figures")).to_contain_text("80 % of the context")
    expect(page.locator("#context")).to_have_text("80 % of the context used")
    send(page, QUESTION)
    expect(page.get_by_role("alert")).to_contain_text("The context is full: the conversation has 35 tokens")


def test_a_server_that_is_gone_and_a_stream_that_breaks_off(page: Page) -> None:
    page.context.set_offline(True)
    send(page, QUESTION)
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    expect(page.locator("article.user .text")).to_have_text(QUESTION)
    page.context.set_offline(False)
    half, error = (
        stream("Half").removesuffix("data: [DONE]\n\n"),
        'data: {"error": {"message": "the server is ending"}}\n\n',
    )
    for body, words in ((half, "the connection ended before the answer did"), (half + error, "the server is ending")):
        page.route(CHAT, says(body))
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_contain_text(f"The answer has broken off: {words}.")
        expect(answers(page).locator(".md")).to_have_text("Half")
        page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    expect(answers(page).locator(".md")).to_have_text(ANSWER)
    expect(answers(page)).to_have_count(1)
