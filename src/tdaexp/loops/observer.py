"""What looks on in a training loop, and when it is told what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdaexp.loops.loop import Loop


class Observer:
    """What looks on while a model is trained; it leaves model and training as they are."""

    needs_rows = False
    """Whether it must know which training rows are in each batch."""

    def begin(self, loop: Loop) -> None:
        """The training begins. Errors (UserError): it is one that this observer cannot follow."""

    def ahead(self, loop: Loop) -> None:
        """The first pass of an update is about to begin."""

    def passing(self, loop: Loop) -> None:
        """A pass is about to begin, over the rows in `loop.passes[-1]`."""

    def before(self, loop: Loop) -> None:
        """The optimiser is called; where it runs the last pass itself (a closure), that is still to come."""

    def made(self, loop: Loop) -> None:
        """The optimiser has changed the parameters; their gradients are still there."""

    def after(self, loop: Loop) -> None:
        """An update was made, the `loop.step`-th; the parameters are those after it."""

    def discard(self, loop: Loop, keep: int) -> None:
        """No update came of the passes so far but for the last `keep`."""

    def end(self, loop: Loop) -> None:
        """The training has ended."""

    def leave(self) -> None:
        """Take off what was put on the model."""
