"""Mailbox: what workers tell the driver, kept in the order in which it comes; an actor, so it imports nothing heavy."""

from __future__ import annotations


class Mailbox:
    """Keeps letters until they are taken; each is the bytes of a `Letter`, which it does not open."""

    def __init__(self) -> None:
        self._letters: list[bytes] = []

    def put(self, letter: bytes) -> None:
        """Keep a letter: once this returns it is safe, whatever becomes of who wrote it."""
        self._letters.append(letter)

    def take(self) -> list[bytes]:
        """All that have come since this was asked last."""
        letters, self._letters = self._letters, []
        return letters
