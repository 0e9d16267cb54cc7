"""Two checkpoints of one architecture: may one be the other after more training, and what do they share?

Components are shared when both models have them with the same name and shape. A head or an embedding that was replaced
or resized in fine-tuning is not shared, and is named as skipped.
"""

from __future__ import annotations

from collections.abc import Iterable

from tdaexp.models.components import Component, ComponentMap
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.errors import UserError

ADVICE = "name a checkpoint that was trained from model.pretrained"


def check_successor(first: LoadedModel, second: LoadedModel, name: str) -> None:
    """Refuse a second checkpoint (config value `name`) of another architecture, depth or tokeniser.

    The second tokeniser may add tokens (as instruction tuning does) but must give the first one's tokens the same ids
    and cut texts in the same way.
    """
    where = f"model.finetuned={name}"
    ours, theirs = first.model.config, second.model.config
    if ours.model_type != theirs.model_type:
        raise UserError(f"{where}: a {theirs.model_type} model, while model.pretrained is {ours.model_type}; {ADVICE}")
    if ours.num_hidden_layers != theirs.num_hidden_layers:
        raise UserError(
            f"{where}: has {theirs.num_hidden_layers} layers, while model.pretrained has {ours.num_hidden_layers}; "
            f"{ADVICE}"
        )
    known, later = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    moved = next((token for token, number in known.items() if later.get(token) != number), None)
    if moved is not None:
        raise UserError(f"{where}: another tokeniser (token {moved!r} has another number or none); {ADVICE}")
    probe = "The quick brown fox, 1984: naïve “quotes”\n\tand  two  blanks."
    if first.tokenizer(probe)["input_ids"] != second.tokenizer(probe)["input_ids"]:
        raise UserError(f"{where}: its tokeniser cuts the same text in another way; {ADVICE}")


def shared_components(
    one: ComponentMap, two: ComponentMap, names: Iterable[str] | None = None
) -> tuple[ComponentMap, ComponentMap]:
    """The components that both models have with the same shape, as maps of the first and of the second model.

    `names` restricts them. A name that is not shared is a `UserError`.
    """
    shapes = {component.name: _shape(component) for component in two.components}
    common = [c.name for c in one.components if shapes.get(c.name) == _shape(c)]
    if not common:
        raise UserError(f"model.finetuned shares no component with model.pretrained; {ADVICE}")
    maps = [whole.select(common) for whole in (one, two)]
    if names is None:
        return maps[0], maps[1]
    wanted = list(names)
    for name in wanted:
        if name in one.names and name not in common:
            raise UserError(f"component '{name}' has another shape in model.finetuned (or is missing); leave it out")
    return maps[0].select(wanted), maps[1].select(wanted)


def _shape(component: Component) -> list[tuple[str, str, bool, tuple[int, int]]]:
    return [(part.module, part.kind, part.bias, part.shape) for part in component.parts]
