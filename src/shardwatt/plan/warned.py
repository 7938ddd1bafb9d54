"""Notes that are told as warnings, whatever else there is to note."""

from __future__ import annotations


class Warned(str):
    """A note on a forecast that no list of notes may hide: it is shown as a warning, once.

    Its text is the same for all cells that it is about, or there would be as many warnings as cells.
    """

    __slots__ = ()
