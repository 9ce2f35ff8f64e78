"""Words that all commands and pages use. Knows numbers and nouns alone."""


def counted(number: int, noun: str) -> str:
    """`1 task`, `2,000 images`; for nouns whose plural is an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
