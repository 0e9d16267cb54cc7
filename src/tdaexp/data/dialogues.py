"""Dialogues as people store them, and the record that one becomes.

A dialogue is a list of turns: objects with `role` and `content` (or `from` and `value`), or texts, the user's and the
assistant's in turns. The record's completion is the assistant's last turn; what comes behind it is not read. Earlier
turns are in `Record.said`, unless there is one question alone: then the record is the same as that of a prompt and a
completion.
"""

from __future__ import annotations

from typing import Any

from tdaexp.data.records import Turn
from tdaexp.data.templates import ASSISTANT
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import as_text, spelt

ROLES = {
    **{role: role for role in ("system", "developer", "user", ASSISTANT, "tool", "function")},
    **{"human": "user", "gpt": ASSISTANT, "model": ASSISTANT, "bot": ASSISTANT},
}
"""The roles that are known, and what chat templates call them."""
KEYS = (("role", "content"), ("from", "value"))

Told = tuple[str, str, tuple[Turn, ...]]
"""A record's prompt, its completion, and what was said before it where that is more than one question."""


def is_dialogue(value: Any) -> bool:
    """Whether a value of a column that may hold a text is a list of messages."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], dict)


def turns_of(value: Any, where: str) -> list[Turn]:
    """Read a dialogue's turns; `where` is the place of the whole list.

    Raises:
        UserError: no list, a turn of another form, an unknown role, or a turn without text.
    """
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where} holds {spelt(value)}, not a list of messages with role and content")
    if all(isinstance(one, str) for one in value):
        value = [{"role": ("user", ASSISTANT)[k % 2], "content": one} for k, one in enumerate(value)]
    return [_turn(one, f"{where}, message {k}") for k, one in enumerate(value, start=1)]


def _turn(message: Any, where: str) -> Turn:
    keys = next((keys for keys in KEYS if isinstance(message, dict) and all(key in message for key in keys)), None)
    if keys is None:
        raise UserError(f"{where}: is no object with role and content (or from and value)")
    role, content = (message[key] for key in keys)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise unknown("role", role if isinstance(role, str) else spelt(role), ROLES, where)
    text = as_text(content, f"{where}: '{keys[1]}'")
    if not text.strip():
        raise UserError(f"{where}: '{keys[1]}' holds no text; fill it in or remove the message")
    return ROLES[role.lower()], text


def told(turns: list[Turn], where: str) -> Told:
    """What a record is made of. Errors (UserError): the assistant says nothing."""
    spoken = [k for k, (role, _) in enumerate(turns) if role == ASSISTANT]
    if not spoken:
        raise UserError(
            f"{where}: no turn of the assistant, so there is nothing to predict; add its answer, or remove the row"
        )
    before, completion = tuple(turns[: spoken[-1]]), turns[spoken[-1]][1]
    prompt = "\n".join(text for _, text in before)
    return prompt, completion, () if [role for role, _ in before] in ([], ["user"]) else before
