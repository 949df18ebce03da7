"""`Constraint`: which tokens may come next in one answer. Plain Python; who makes one knows why, this does not.

A generation carries a function that makes them, since each of its choices stands somewhere else in its answer.
"""

from __future__ import annotations

from typing import Protocol


class Constraint(Protocol):
    """The state of one answer that must keep to a form. Used on the engine's thread, one call at a time."""

    @property
    def ended(self) -> bool:
        """Whether the answer is complete: nothing may follow but an end token."""
        ...

    def allowed(self) -> bytes:
        """One byte for each token id, 0 where the token may not come now; ids beyond its length may not.

        Raises:
            ConstraintFailed: it cannot tell any more; the answer ends in this error
        """
        ...

    def accept(self, token: int) -> None:
        """The answer goes on with this token, one of those allowed; raises ConstraintFailed like `allowed`."""
        ...
