"""How a prompt and a completion become one text: chat templates, plain text, and format strings.

Every template cuts the text in two, so that the loss can begin exactly after the first part: the part that a
model is given when it generates, and the part that it should then write. A dialogue with several turns of the
assistant is cut in as many pairs of parts, `given, written, given, written, …`, where all its turns count
(`turns=all`), or in two before the last (`turns=last`).

A tokenizer's chat template renders the roles. `plain` and format strings know none: there a dialogue is a row of
exchanges, what others said (their turns one under the other) and what the assistant answered, each rendered like a
prompt and its completion, one under the other.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Callable, Sequence
from typing import Any

from tdaexp.data.records import Record, Turn
from tdaexp.runtime.deadline import Overdue, within
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import reason, spelt

SECONDS = 10.0
"""The longest that a chat template may take over one record: they take a fraction of a millisecond."""
OTHERWISE = "take dataset.template=plain or a format string instead, or mend the tokenizer's chat_template"

TURNS = ("all", "last")
ASSISTANT = "assistant"

Split = Callable[[Record], list[str]]
"""record -> parts of its text, by turns what the model is given and what it should write; the last is written."""

NAMED = {
    "plain": "{prompt}\n{completion}",
    "olmo": "<|user|>\n{prompt}\n<|assistant|>\n{completion}",  # as AMD-OLMo-1B-SFT was fine-tuned
}


def resolve(template: str, tokenizer: Any) -> str:
    """Return the template's own name or format string: `auto` becomes `chat` where the tokenizer has one, else `plain`.

    Raises:
        UserError: an unknown name, `chat` without a chat template, or a format string that is not one.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "auto":
        return "chat" if has_chat else "plain"
    if template == "chat" and not has_chat:
        raise UserError(
            "dataset.template=chat: this tokenizer has no chat template; try dataset.template=plain or =olmo"
        )
    check(template)
    return template


def check(template: str, where: str = "dataset.template") -> None:
    """Check a template, set by the config key `where`, as far as no tokenizer is needed.

    Raises:
        UserError: an unknown name, or a format string that is not one.
    """
    if "{" in template:
        check_format(template, where)
    elif template not in ("auto", "chat", *NAMED):
        raise unknown("template", template, ("auto", "chat", *NAMED), where)


def check_format(template: str, where: str = "dataset.template") -> None:
    """Check a custom format string.

    Raises:
        UserError: not exactly one `{completion}`, another placeholder, a `{prompt}` behind it, or a stray brace.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}='{template}': {error}; write literal braces twice") from error
    names = [name for _, name, _, _ in parts if name is not None]
    for name in names:
        if name not in ("prompt", "completion"):
            raise unknown("placeholder", name, ("prompt", "completion"), f"{where}='{template}'")
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"{where}='{template}': a placeholder takes neither a format nor a conversion")
    if names.count("completion") != 1 or names[-1] != "completion":
        raise UserError(f"{where}='{template}': needs {{completion}} once, behind {{prompt}}")


def splitter(template: str, tokenizer: Any, turns: str = "all") -> Split:
    """Return the function that cuts a record's text into parts, for a resolved template.

    `plain` without a prompt has no separator either: the text is the completion alone.
    """
    if template == "chat":
        return lambda record: split_chat(record, tokenizer, turns)
    pattern = NAMED.get(template, template)
    cut = pattern.index("{completion}")
    before, after = pattern[:cut], pattern[cut:]

    def split(record: Record) -> list[str]:
        parts: list[str] = []
        for prompt, completion in exchanges(record):
            given = "" if template == "plain" and not prompt else before.format(prompt=prompt)
            parts += ["\n" + given if parts else given, after.format(completion=completion)]
        return parts if turns == "all" else in_two(parts)

    return split


def in_two(parts: list[str]) -> list[str]:
    """Everything before the last part, and that."""
    return ["".join(parts[:-1]), parts[-1]]


def exchanges(record: Record) -> list[tuple[str, str]]:
    """A dialogue as pairs of what others said, one under the other, and what the assistant answered."""
    if not record.said:
        return [(record.prompt, record.completion)]
    found: list[tuple[str, str]] = []
    asked: list[str] = []
    for role, text in (*record.said, (ASSISTANT, record.completion)):
        if role == ASSISTANT:
            found.append(("\n".join(asked), text))
            asked = []
        else:
            asked.append(text)
    return found


def split_chat(record: Record, tokenizer: Any, turns: str) -> list[str]:
    """Render a record with the tokenizer's chat template and cut it after each generation prompt that counts.

    Raises:
        UserError: the template fails or does not end, or does not begin a finished dialogue with what it gives a model
            to continue, or (turns=all) with its earlier turns.
    """
    said: tuple[Turn, ...] = (*(record.said or (("user", record.prompt),)), (ASSISTANT, record.completion))
    spoken = [{"role": role, "content": text} for role, text in said]
    whole, start, parts = rendered(record, tokenizer, spoken), 0, []
    last = len(said) - 1
    for turn in [k for k, (role, _) in enumerate(said) if role == ASSISTANT and (turns == "all" or k == last)]:
        given = rendered(record, tokenizer, spoken[:turn], add_generation_prompt=True)
        until = whole if turn == last else rendered(record, tokenizer, spoken[: turn + 1])
        if not (whole.startswith(given) and whole.startswith(until) and start <= len(given) <= len(until)):
            if turn < last:
                raise UserError(
                    f"{record.place}: this chat template renders the assistant's turn {turn + 1} otherwise once the "
                    "dialogue goes on, so that no loss can be put on it; take dataset.turns=last"
                )
            raise UserError(
                f"{record.place}: this chat template's generation prompt is not how its finished "
                "dialogue begins, so the loss has no exact place to start; give a format string instead"
            )
        parts += [whole[start : len(given)], whole[len(given) : len(until)]]
        start = len(until)
    return parts


def rendered(record: Record, tokenizer: Any, turns: Sequence[dict[str, str]], **options: Any) -> str:
    """What the tokenizer's chat template makes of turns, in at most `SECONDS`.

    Raises:
        UserError: it raises anything, gives no text, or does not end in time.
    """
    if isinstance(tokenizer.chat_template, str) and has_power(tokenizer.chat_template):
        raise UserError(
            f"{record.place}: the tokenizer's chat template fails on it (it raises to a power, which may never end); "
            f"{OTHERWISE}"
        )
    try:
        text = within(SECONDS, lambda: tokenizer.apply_chat_template(list(turns), tokenize=False, **options))
    except Overdue as error:
        raise UserError(
            f"{record.place}: the tokenizer's chat template did not end in {SECONDS:g} s; {OTHERWISE}"
        ) from error
    except Exception as error:
        told = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"{record.place}: the tokenizer's chat template fails on it ({told}); {OTHERWISE}") from error
    if not isinstance(text, str):
        raise UserError(f"{record.place}: the tokenizer's chat template gives {spelt(text)}, no text; {OTHERWISE}")
    return text


@functools.lru_cache
def has_power(template: str) -> bool:
    """Whether a Jinja template raises to a power: that of large numbers is one operation, which no time limit ends."""
    import jinja2

    try:
        told = [(kind, text) for _, kind, text in jinja2.Environment().lex(template) if kind != "whitespace"]
    except jinja2.TemplateError:  # rendering says what is wrong with it
        return False
    # before `**options` in a call or a signature stands a bracket or a comma
    return any(
        text == "**" and before not in ("(", ",")
        for (_, before), (kind, text) in itertools.pairwise(told)
        if kind == "operator"
    )
