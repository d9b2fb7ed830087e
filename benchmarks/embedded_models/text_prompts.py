"""The words and prompts of the embedded text-to-image model, and what each prompt asks for. No torch."""

from collections.abc import Sequence
from random import Random
from typing import Literal

Style = Literal["thin", "plain", "thick"]
STYLES: tuple[Style, ...] = ("thin", "plain", "thick")

NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FIGURES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
STYLE_WORDS: dict[Style, tuple[str, ...]] = {
    "thin": ("thin", "slim", "fine", "slender"),
    "plain": ("plain", "normal", "ordinary", "regular"),
    "thick": ("thick", "bold", "fat", "heavy"),
}
NOUNS = ("digit", "number", "numeral", "figure")
PICTURES = ("picture", "image", "photo", "drawing", "sketch", "scan")
# Words that say nothing about the picture: the model hears them in training and learns to pass over them.
FILLERS = (
    *("a", "an", "the", "of", "in", "on", "by", "with", "and", "to", "for", "my", "your", "this", "that", "it", "is"),
    *("draw", "show", "make", "write", "please", "me", "just", "some", "single", "very", "really", "quite"),
    *("handwritten", "written", "drawn", "hand", "pen", "pencil", "ink", "black", "white", "paper", "background"),
    *("simple", "clean", "clear", "nice", "good", "beautiful", "pretty", "neat", "old", "new"),
)
WORDS = (*NUMERALS, *FIGURES, *(word for style in STYLES for word in STYLE_WORDS[style]), *NOUNS, *PICTURES, *FILLERS)
LETTERS = "abcdefghijklmnopqrstuvwxyz"

EMPTY_SHARE = 0.1
"""Share of training prompts that are empty. Ho and Salimans 2022 (classifier-free guidance), p_uncond."""
NO_DIGIT_SHARE = 0.05
"""Share of the other prompts that name a style alone: "a thin digit"."""
FILLED_SHARE = 0.3
"""Share with one to three of FILLERS among their words."""
STRANGE_SHARE = 0.1
"""Share with a word that is none: letters at random, so that the pieces of unknown words are passed over too."""


def prompt_for(digit: int, style: Style = "plain") -> str:
    """The plainest prompt of a digit in a style: "three", "a thin seven", "a thick two"."""
    return NUMERALS[digit] if style == "plain" else f"a {style} {NUMERALS[digit]}"


PROMPTS = tuple(prompt_for(digit, style) for style in STYLES for digit in range(10))
"""The thirty plainest prompts: all digits thin, then plain, then thick."""


def _core(digit: int | None, style: Style, random: Random) -> list[str]:
    """The words that carry the meaning, in one of the orders in which people say them."""
    plain_said = style == "plain" and random.random() < 0.8
    adjective = [] if plain_said else [random.choice(STYLE_WORDS[style])]
    if digit is None:
        return [*adjective, random.choice(NOUNS)]
    name = NUMERALS[digit] if random.random() < 0.75 else FIGURES[digit]
    noun = [random.choice(NOUNS)] if random.random() < 0.25 else []
    if adjective and random.random() < 0.1:
        return [*noun, name, *adjective]
    return [*adjective, *noun, name]


def _strange_word(random: Random) -> str:
    return "".join(random.choice(LETTERS) for _ in range(random.randint(2, 6)))


def draw_prompt(digit: int, style: Style, random: Random) -> str:
    """A random prompt for a picture of `digit` in `style`; a few leave the digit, or everything, open."""
    if random.random() < EMPTY_SHARE:
        return ""
    words = _core(None if random.random() < NO_DIGIT_SHARE else digit, style, random)
    if random.random() < 0.6:
        words.insert(0, "an" if words[0][0] in "aeiou8" else "a")
    if random.random() < 0.15:
        words = [random.choice(PICTURES), "of", *words]
    if random.random() < FILLED_SHARE:
        for _ in range(random.randint(1, 3)):
            words.insert(random.randint(0, len(words)), random.choice(FILLERS))
    if random.random() < STRANGE_SHARE:
        words.insert(random.randint(0, len(words)), _strange_word(random))
    return " ".join(words)


def draw_prompts(digits: Sequence[int], styles: Sequence[Style], random: Random) -> list[str]:
    """One training prompt for each picture."""
    return [draw_prompt(digit, style, random) for digit, style in zip(digits, styles, strict=True)]
