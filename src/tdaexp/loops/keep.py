"""Checkpoints of a language model that somebody's loop trains, with what AdamW had: what `tracin` and `source` read.

    folder/course.json           rates, weight decay and optimiser of the steps so far
    folder/checkpoints/step-N/   hub format, and with `state` also `optimizer.safetensors`; complete or not at all
    folder/model/                the trained model, with `training.json`

`tdaexp.attribute(MODEL, …, method="tracin")` finds them where MODEL was read from `folder/model`, and so does
`attribute.py model=hub model.pretrained=FOLDER/model`. Cost: writing the weights, three times those with `state`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tdaexp.loops.loop import Loop
from tdaexp.loops.observer import Observer
from tdaexp.loops.optimisers import alike, decays_of, kind_of, rate_of, save_adam
from tdaexp.models.wrapped import language_model
from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path, remove, write_json
from tdaexp.runtime.fingerprint import provenance
from tdaexp.training.checkpoints import save_hub

log = logging.getLogger(__name__)
COURSE = "course.json"


class KeepCheckpoints(Observer):
    """Keeps a checkpoint every so many updates in `folder`, with AdamW's `state` unless that is not wanted."""

    def __init__(self, folder: str | Path, every: int = 100, state: bool = True, tokenizer: Any = None) -> None:
        """`tokenizer` is needed where the loop does not tell it. Errors (UserError): an impossible number."""
        if every < 1:
            raise UserError(f"KeepCheckpoints: every={every} must be at least 1")
        self.folder, self.every, self.state, self.tokenizer = Path(folder), every, state, tokenizer
        self._rates: list[float] = []

    def begin(self, loop: Loop) -> None:
        """Errors (UserError): no language model of transformers, no tokenizer, another training's folder, another
        optimiser than the state is of.
        """
        self._model = language_model(loop.model)
        self._tokenizer = self.tokenizer or loop.tokenizer
        if not isinstance(self._model, PreTrainedModel):
            raise UserError(
                f"KeepCheckpoints: a {type(self._model).__name__} is no model of transformers; Record keeps what a "
                "training of any other module went through"
            )
        if self._model is not loop.model:
            raise UserError("KeepCheckpoints: keeps whole models, and this one has an adapter of peft; train with "
                            "train.py (model.adapter=new), which keeps adapters")  # fmt: skip
        if self._tokenizer is None:
            raise UserError("KeepCheckpoints: a checkpoint is read with its tokenizer; give tokenizer=TOKENIZER")
        self._optimizer = kind_of(loop.optimizer)
        alike(loop.optimizer, ("betas", "eps", "momentum"))
        if self.state and self._optimizer != "adamw":
            raise UserError("KeepCheckpoints: the state that is kept is AdamW's, and this is SGD; take state=False")
        if not loop.start and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"KeepCheckpoints: {self.folder} holds something already; name a new folder")
        self._rates = self._known(loop.start)

    def before(self, loop: Loop) -> None:
        """Note the update's rate."""
        self._rates = [*self._rates[: loop.step], rate_of(loop.optimizer)]

    def after(self, loop: Loop) -> None:
        """Keep the step where it is due. The course comes first: what is there has it."""
        if loop.step % self.every or not loop.first:
            return
        seal.write_note(self.folder / COURSE, self._course(loop))
        place = self.folder / "checkpoints" / f"step-{loop.step}"
        with atomic_path(place) as temporary:
            temporary.mkdir()
            self._save(temporary)
            if self.state:
                decay = decays_of(loop.model, loop.optimizer)
                save_adam(temporary, loop.parameters, loop.optimizer, decay, loop.step)
            seal.seal(temporary)

    def end(self, loop: Loop) -> None:
        """Keep the model that the training ended with, and the training's own account of how it went."""
        if not loop.first:
            return
        if loop.step < self.every:
            log.warning("KeepCheckpoints: %d updates and a checkpoint every %d leave none", loop.step, self.every)
        course = self._course(loop)
        group = loop.optimizer.param_groups[0]
        settings: dict[str, Any] = {
            "steps": loop.step, "lr": max([*self._rates, 0.0]), "warmup": 0, "schedule": "constant",
            "checkpoint_every": self.every, "keep": "state" if self.state else "all", **course["settings"],
        }  # fmt: skip
        settings |= {key: group[key] for key in ("eps", "momentum") if key in group}
        place = self.folder / "model"
        with atomic_path(place) as temporary:
            temporary.mkdir()
            self._save(temporary)
            write_json(temporary / "training.json", {"settings": settings, "course": course, **provenance()})
            seal.seal(temporary)

    def _save(self, folder: Path) -> None:
        assert isinstance(self._model, PreTrainedModel)  # as it began
        save_hub(folder, self._model, self._tokenizer)

    def _course(self, loop: Loop) -> dict[str, Any]:
        group = loop.optimizer.param_groups[0]
        settings: dict[str, Any] = {"optimizer": self._optimizer}
        settings |= {"betas": list(group["betas"])} if "betas" in group else {}
        return {
            "rates": self._rates,
            "settings": settings,
            "momentum": float(group.get("momentum", 0.0)),
            "decay": decays_of(loop.model, loop.optimizer),
        }

    def _known(self, start: int) -> list[float]:
        """Rates of the updates that were made before this loop went on."""
        if not start:
            return []
        note = self.folder / COURSE
        try:
            rates: list[float] = seal.read_note(note)["rates"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"KeepCheckpoints: the training goes on from step {start}, and {note} does not tell how it went so far "
                f"({type(error).__name__}); begin it anew in a new folder"
            ) from error
        if len(rates) < start:
            raise UserError(f"KeepCheckpoints: the training goes on from step {start}, and {note} ends at step "
                            f"{len(rates)}; go on from there, or from a step before")  # fmt: skip
        for place in (self.folder / "checkpoints").glob("step-*"):
            if place.name.removeprefix("step-").isdecimal() and int(place.name.removeprefix("step-")) > start:
                remove(place)
        return rates[:start]
