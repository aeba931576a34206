"""Frames of a stream."""

from __future__ import annotations

import pytest

from mistral.server.sse import Chunks, frame


@pytest.mark.parametrize("after", [{}, {"usage": None}, {"usage": {"a": 1}, "b": "é"}])
@pytest.mark.parametrize("item", [{"index": 0, "text": 'a"\n\u2028é\x9f'}, {}, None])
def test_a_frame_with_a_prepared_head_is_the_same(after: dict[str, object], item: object) -> None:
    """As if the whole object were written."""
    head = {"id": "x", "model": "é\u2028\x7f"}
    assert Chunks(head, "choices", after).frame(item) == frame({**head, "choices": [item], **after})
