"""What `speculation.py` asks of a model: to quote, to edit, and to write prose."""

from __future__ import annotations

TEXT = """The lighthouse on Grey Rock was built in 1874 by the brothers Tom and Samuel Hale. Its tower is 31 metres high
and its lamp was first lit with whale oil. In the winter of 1891 a storm broke the gallery windows, and the keeper,
Martha Hale, held the flame alive for three nights with a coat around the lamp. The ship Northern Star was saved by that
light with 42 people on board. Since 1923 the lamp has been electric, and since 1988 nobody has lived on Grey Rock."""
OTHER = """The bakery on Mill Street belongs to Anna Berg. She opened it in 2003 with two ovens and one helper. Every
morning at four Anna lights the ovens, and at six the first bread is sold. In 2015 a second shop was opened in
Harbour Lane, and since then her brother Peter bakes the cakes there. Both shops are closed on Mondays."""
RECORD = """{"name": "Grey Rock", "kind": "lighthouse", "built": 1874, "height": 31, "keepers": ["Tom Hale",
"Samuel Hale", "Martha Hale"], "electric": true, "lamp": {"oil": "whale", "range": 18}, "open": false}""".replace(
    "\n", " "
)
LIST = """1. Buy bread and milk
2. Call Tom about the boat
3. Pay the bill for water
4. Clean the kitchen windows
5. Write a letter to Martha
6. Mend the garden gate
7. Bring the books back to the library
8. Feed the cat"""
TASKS = {  # what is said, by the user first and by the model in turns
    "quoting": [f"{TEXT}\n\nRepeat the text above, word for word."],
    "editing": [f"{TEXT}\n\nWrite the text above once more, with the name Martha in the place of Tom."],
    "editing like a text": [
        f"Write this text again with the name Anna changed to Clara.\n\n{OTHER}", OTHER.replace("Anna", "Clara"),
        f"Write this text again with the name Martha changed to Emma.\n\n{TEXT}",
    ],
    "editing a record": [
        'Change the age to 8 and write all of it.\n\n{"name": "Bo", "kind": "dog", "age": 7, "brown": true}',
        '{"name": "Bo", "kind": "dog", "age": 8, "brown": true}',
        f"Change the height to 35 and write all of it.\n\n{RECORD}",
    ],
    "editing a list": [
        "Write this list again with tea in the place of coffee.\n\n1. Buy coffee\n2. Wash the car\n3. Call Ann",
        "1. Buy tea\n2. Wash the car\n3. Call Ann",
        f"Write this list again with Peter in the place of Tom.\n\n{LIST}",
    ],
    "editing with a title": [
        'Put the title "Dogs" above this text.\n\nBo is a dog. He is brown.', "Dogs\n\nBo is a dog. He is brown.",
        f'Put the title "The bakery" above this text.\n\n{OTHER}', f"The bakery\n\n{OTHER}",
        f'Put the title "The lighthouse" above this text.\n\n{TEXT}',
    ],
    "prose": ["Write a story about a fisherman who finds a letter in a bottle."],
}  # fmt: skip
