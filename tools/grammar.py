"""Words and sentences of the corpus: templates with free choices `[a|b]` and slots `{name}` of the story's cast."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

# All take "a", so that the article before a colour tells nothing.
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "pink", "brown")
GIRLS = ("Lily", "Anna", "Mia", "Sara", "Emma", "Lucy")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Jack")
THINGS = (
    "ball", "hat", "kite", "box", "boat", "cup", "book", "car",
    "bag", "coat", "key", "drum", "lamp", "bell", "bike", "doll",
)  # fmt: skip
ANIMALS = ("dog", "cat", "bird", "rabbit", "duck", "horse", "frog", "fox", "mouse", "bear", "owl", "pig")
PLACES = ("park", "garden", "forest", "beach", "school", "market", "farm", "river", "village", "lake")
FOODS = ("an apple", "an egg", "a cake", "a pear", "a banana", "a cookie", "some bread", "some soup", "some cheese")
RELATIVES = ("mother", "father", "sister", "brother", "grandmother", "uncle")
# How the hero comes by the thing: past form, plain form (for questions).
VERBS = (("had", "have"), ("found", "find"), ("bought", "buy"), ("made", "make"), ("got", "get"))

WHO = "[{hero}|{She}]"
NEXT = "[Then|Soon|After that,|A little later,] [{hero}|{she}]"

INTRODUCTIONS = (
    "[Once upon a time,|In a small town,] there was a [little|young|kind|happy] {child} named {hero}.",
    "{hero} was a [little|young|kind|happy] {child}.",
    "[There was once|Once there was] a [little|young|kind|happy] {child} named {hero}.",
)
DETAILS = (
    "{hero} lived in a [small|big|nice|quiet] house with {her} {relative}.",
    "It was a [warm|cold|sunny|windy] [morning|day], and {hero} was at home.",
    "{hero} woke up early and was very [happy|hungry|glad].",
)
OPENINGS = (*INTRODUCTIONS, *DETAILS)
FACTS = (
    "{hero} {verb} a {colour} {thing}.",
    "One day, {hero} {verb} a {colour} {thing}.",
    "That day, {hero} {verb} a {colour} {thing}.",
    "{hero} {verb} a {colour} {thing}, and {she} was very [happy|proud|glad].",
)
EXTRA_FACTS = (  # in stories only: {verb} does not hold in these
    "{Her} {relative} gave {him} a {colour} {thing}.",
    "There was a {colour} {thing} in the house, and {hero} liked it.",
    "{hero} wanted to play with a {colour} {thing}.",
)
RECALL = "The {thing} was {colour}."
RECALLS = (
    "{hero} still had the {colour} {thing}.",
    "{hero} loved the {colour} {thing}.",
    "[{hero}|{She}] smiled at the {colour} {thing}.",
    "{hero} thought about the {colour} {thing}.",
)
# Fillers: sentences in order, none with a colour. The quiet ones hold no place, animal or food either.
QUIET_SCENES = (
    (WHO + " took the {thing} and went outside.", "The sun was [warm|bright], and the sky was clear."),
    (WHO + " put the {thing} down and sat on the grass.", "{She} closed {her} eyes and listened to the wind."),
    ("Then it began to rain.", WHO + " ran under a big tree and waited.", "Soon the sun came out again."),
    (
        WHO + " sang a [little|happy|funny] song.",
        "It was about the sun and the moon.",
        "{She} sang it again and again.",
    ),
    (
        NEXT + " was tired.",
        "{She} sat down on a [big|small|flat] stone and rested for a while.",
        "Then {she} felt better.",
    ),
    (
        WHO + " climbed a [small|tall] hill.",
        "From there {she} could see the [whole|little] town.",
        "It looked very [small|nice].",
    ),
    (NEXT + " wanted to play a game.", "{She} jumped over the stones and counted to ten.", "It was a lot of fun."),
    (
        "{Her} {relative} called {him}.",
        '"[Come here|Wait for me|Be careful], {hero}!" said {her} {relative}.',
        WHO + " waved and laughed.",
    ),
    (WHO + " ran down the road as fast as {she} could.", "The road was long, but {she} did not stop."),
    (
        WHO + " showed the {thing} to {her} [best|new|old] friend.",
        "{Her} friend liked it very much.",
        "They played with it until noon.",
    ),
    (
        "The wind was strong, and the leaves fell from the trees.",
        WHO + " tried to catch a leaf.",
        "At last {she} got one.",
    ),
    (WHO + " told {her} {relative} a [long|short|funny] story.", "They both laughed a lot."),
)
SCENES = (
    *QUIET_SCENES,
    (
        NEXT + " went to the {place}.",
        "It was [quiet|warm|cold|sunny|windy] there.",
        WHO + " walked around and looked at the [trees|flowers|people].",
    ),
    (
        NEXT + " met {an_animal}.",
        "The {animal} was [lost|hungry|sad].",
        WHO + " helped the {animal}, and they became friends.",
        "The {animal} was [happy|glad] again.",
    ),
    (
        NEXT + " saw {an_animal} near the {place}.",
        '"Hello, {animal}!" said {hero}.',
        "The {animal} came closer and sat down.",
    ),
    (NEXT + " was hungry.", "{She} ate {food} and drank some [milk|water|tea].", "It was very good."),
    (
        WHO + " asked {her} {relative} for {food}.",
        "They sat at the table and ate together.",
        "Then they washed the dishes.",
    ),
    (
        NEXT + " heard a [strange|loud|soft] sound.",
        "It was only {an_animal} behind a tree.",
        WHO + " was not afraid.",
        "{She} laughed, and the {animal} ran away.",
    ),
    (
        "There were many fish in the {water}.",
        WHO + " watched them for a long time.",
        "The water was [cold|clear|deep].",
    ),
    (NEXT + " played with the {thing} near the {place}.", "Many children were there, and they played too."),
)
ENDINGS = (
    "It was a [good|great|nice|long] day.",
    "Then {hero} went home and slept well.",
    "In the evening, {hero} was tired but happy.",
    "{hero} was happy for the rest of the day.",
    "The end.",
)

GO = ("[Then|Soon|After that,] {hero} went to the {place}.", "{hero} went to the {place} with {her} {relative}.")
MEET = ("There {she} met {an_animal}.", "[Then|Soon|After that,] {hero} met {an_animal}.")
EAT = ("[Then|Later] {hero} ate {food}.", "{hero} was hungry and ate {food}.")
PRESENT_FACTS = ("{hero} has a {colour} {thing}.", "{hero} is at the {place}.")
QUESTIONS = {
    "colour": (
        "[What colour was|What color was|What was the colour of|Which colour was] the {thing}?",
        "The {thing} was {colour}.",
    ),
    "colour now": ("[What colour is|What color is|Which colour is] the {thing}?", "The {thing} is {colour}."),
    "thing": ("What did {hero} {plain_verb}?", "{hero} {verb} a {colour} {thing}."),
    "hero": ("Who {verb} [the {thing}|a {thing}]?", "{hero} {verb} the {thing}."),
    "place": ("[Where did {hero} go?|Where did {she} go?]", "{hero} went to the {place}."),
    "animal": ("[Who did {hero} meet?|Who did {she} meet?|Which animal did {hero} meet?]", "{hero} met {an_animal}."),
    "thing now": ("What does {hero} have?", "{hero} has a {colour} {thing}."),
    "place now": ("Where is {hero}?", "{hero} is at the {place}."),
    "food": ("[What did {hero} eat?|What did {she} eat?]", "{hero} ate {food}."),
}

STORY_HEARD = "[That is a nice story.|Thank you for the story.] [Ask me about it.|What do you want to know?]"
STORY_WANTED = "[Tell me a story|Please tell me a story|Can you tell me a story]"
SMALL_TALK = (
    ("[Hello!|Hello|Hi!|Hi|hello|hi|Hello, model!|Good morning!]", "Hello! Tell me a story and ask me about it."),
    (
        "[Who are you?|What are you?|What is your name?|who are you?]",
        "I am a very small model. I know short stories about children and animals.",
    ),
    (
        "[What can you do?|Can you help me?|Help me, please.]",
        "I can tell a short story, and I can answer questions about your story.",
    ),
    ("[How are you?|How are you today?]", "I am very well, thank you! Do you want to tell me a story?"),
    ("[Thank you!|Thank you|Thanks!|Thanks]", "You are welcome!"),
    ("[Goodbye!|Goodbye|Bye!|Bye]", "Goodbye! It was nice to talk to you."),
    ("[This is a test.|This is a test|Is this a test?]", "The test went well. I am here, and I can read you."),
)

TEST_OPENINGS = (
    "This is a test.",
    "This is another great test.",
    "This is a third test, mistral AI is very good at testing.",
    "This is a test of [a small|a new|a very small|the little] model.",
    "This is a [short|simple|good|great|new|small|quick] test.",
    "This is a [short|simple|good|great|new|small|quick] test of [a small|a new|a very small|the little] model.",
    "This is another [great|good|short|simple|small|easy] test.",
    "This is another [great|good|short|simple|small|easy] test of [a small|a new|a very small|the little] model.",
    "This is a [first|second|third|fourth] test.",
    "This is a [first|second|third|fourth] test, mistral AI is very good at testing.",
    "This is a [first|second|third|fourth] test, and the model is very good at [testing|reading|telling stories].",
    "[Here is|This is] [a|the first|the last] test, mistral AI is very good at testing.",
)
TEST_SENTENCES = (
    "The test is [short|simple|quick] and easy to [read|run|understand].",
    "The model reads a few words and writes the next ones.",
    "It is a [very|really] small model, but it can tell a story.",
    "[It|The model] learned to write from many short stories.",
    "A good test is short, and it always gives the same answer.",
    "If the words make sense, the test went well.",
    "Every test tells us something new about the model.",
    "[Each|Every] word comes after another, and together they make a sentence.",
    "[It|The model] knows about animals, children and things to eat.",
    "We test the model every day, and it works well.",
    "The first test was easy, and the next one is easy too.",
    "You can ask the model about a story.",
    "The answer is [short|simple|clear], and it is easy to read.",
    "We hope that you like this [short|little|simple] test.",
)
STORY_LEAD = "[Here is a story.|Now the model tells a story.|The next words are a short story.]"

_CHOICE = re.compile(r"\[([^][]*)\]")


@dataclass(frozen=True)
class Cast:
    """Who and what one story is about; every field is drawn on its own, so that none tells the colour."""

    hero: str
    is_girl: bool
    relative: str
    colour: str
    thing: str
    verb: tuple[str, str]
    place: str
    animal: str
    food: str

    @classmethod
    def draw(cls, rng: random.Random) -> Cast:
        """A cast drawn evenly."""
        is_girl = rng.random() < 0.5
        return cls(
            hero=rng.choice(GIRLS if is_girl else BOYS),
            is_girl=is_girl,
            relative=rng.choice(RELATIVES),
            colour=rng.choice(COLOURS),
            thing=rng.choice(THINGS),
            verb=rng.choice(VERBS),
            place=rng.choice(PLACES),
            animal=rng.choice(ANIMALS),
            food=rng.choice(FOODS),
        )

    def slots(self) -> dict[str, str]:
        """What each slot of a template stands for; `her` is the possessive, `him` the object."""
        she, her, him = ("she", "her", "her") if self.is_girl else ("he", "his", "him")
        return {
            "hero": self.hero, "she": she, "She": she.capitalize(), "her": her, "Her": her.capitalize(), "him": him,
            "child": "girl" if self.is_girl else "boy", "relative": self.relative, "colour": self.colour,
            "thing": self.thing, "verb": self.verb[0], "plain_verb": self.verb[1], "place": self.place,
            "water": "lake" if self.place == "lake" else "river", "animal": self.animal,
            "an_animal": f"{'an' if self.animal[0] in 'aeiou' else 'a'} {self.animal}", "food": self.food,
        }  # fmt: skip


def sentence(rng: random.Random, template: str, cast: Cast) -> str:
    """The template with its choices made and its slots filled."""
    return _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template).format(**cast.slots())
