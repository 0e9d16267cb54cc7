"""Passwords and keys: what looks like one, and a text without them.

Two lines of defence. A configuration that holds a secret is refused before anything of it is written (`cli.gate`), for
configurations are kept in run folders, tables and mirrors. And every line that people see, of this program or of a
library's exception, goes through `masked` (errors in `runtime.errors`, logging in `cli.logs`, rows in `sweep`).
"""

from __future__ import annotations

import os
import re

MASK = "***"
TOKEN = r"(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!stop_)(?<!per_)token"
WORDS = (
    rf"(?:api[_-]?key|apikey|access[_-]?key|access[_-]?token|auth[_-]?token|{TOKEN}|secret|password|passwd|pwd|bearer)"
)

_SHAPES = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{8,}|\bhf_[A-Za-z0-9]{8,}|\bgh[opsur]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"
    r"|\bxox[abprs]-[\w-]{8,}|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{20,}|\bgsk_[A-Za-z0-9]{16,}|\bnvapi-[\w-]{16,}"
    r"|\bwandb_v\d_\w{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
_LOGIN = re.compile(r"(?<=://)[^/\s'\"]+:[^\s'\"]*@(?=\S)|(?<=://)[^/\s?#'\"@]*@(?=\S)")
_PARAMETER = re.compile(rf"([?&;][\w.-]*?{WORDS}[\w.-]*=)(?!\*\*\*)[^&;#\s'\"]+", re.IGNORECASE)
_HEADER = re.compile(r"(\b(?:Bearer|Basic)\s+)[\w.~+/=-]{8,}")
# `api_key=…`, `OPENAI_API_KEY: …`; not `api_key_env=…`, which holds a name, nor `new_tokens=…`, which holds a number
_VALUE = r"\s*['\"]?)(?!\*\*\*|\$\{|null\b)[^\s'\",}&]+"
_NAMED = re.compile(
    rf"((?:^|[\s.'\"{{,_-]){WORDS}['\"]?\s*={_VALUE}|((?:^|[\s.'\"{{,])(?:[\w-]*[_-])?{WORDS}['\"]?\s*:{_VALUE}",
    re.IGNORECASE,
)
_QUERY = re.compile(r"(://[^\s'\"?]+\?)(?!\*\*\*)[^\s'\"]+")  # of an address in a message: nobody needs it there
_IN_PLACE_OF_NAME = re.compile(r"(\bapi_key_env['\"]?\s*[=:]\s*['\"]?)(?!null\b|\*\*\*|\$\{)([^\s'\",}]+)")
_RULES = ((_LOGIN, f"{MASK}@"), (_PARAMETER, rf"\1{MASK}"), (_HEADER, rf"\1{MASK}"), (_SHAPES, MASK))
_SECRET_NAME = re.compile(rf"(?:^|[._-]){WORDS}$", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*|[a-z]+(?:_[a-z]+)+")


def masked(text: str, *known: str | None) -> str:
    """Return the text with `***` in the place of every secret: `known` ones, and what has the shape of one."""
    for secret in known:
        if secret:
            text = text.replace(secret, MASK)
    for pattern, instead in (*_RULES, (_QUERY, rf"\1{MASK}")):
        text = pattern.sub(instead, text)
    text = _IN_PLACE_OF_NAME.sub(
        lambda found: found[0] if is_variable(found[2].rstrip(":;.)")) else f"{found[1]}{MASK}", text
    )
    return _NAMED.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)


def holds_secret(key: str, value: object) -> bool:
    """Whether a value is, or contains, a secret: by its shape, or by the name of its key (`WANDB_API_KEY`, `token`)."""
    if isinstance(value, bool) or value is None or value == "":
        return False
    text = str(value)
    if any(pattern.search(text) for pattern, _ in _RULES):
        return not text.startswith("${")
    return isinstance(value, str) and _SECRET_NAME.search(key) is not None and "${" not in text


def is_variable(name: str) -> bool:
    """Whether a text is the name of an environment variable, and not a key that was typed in its place."""
    if name in os.environ:
        return True
    plain = _VARIABLE.fullmatch(name) is not None and _SHAPES.search(name) is None
    digits = sum(letter.isdigit() for letter in name)
    return plain and len(name) <= 64 and digits <= (max(2, len(name) // 4) if "_" in name else 2)
