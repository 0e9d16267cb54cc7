"""Language models that paraphrase: an OpenAI-compatible endpoint, or a Hugging Face model on this machine."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaexp.data.paraphrase import SYSTEM_PROMPT
from tdaexp.data.templates import SECONDS
from tdaexp.runtime.deadline import within
from tdaexp.runtime.device import ACCELERATORS
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.hub import from_hub
from tdaexp.runtime.reading import as_text, reason
from tdaexp.runtime.secrets import is_variable, masked

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # HTTP answers that may be different next time


@dataclass
class OpenAICompatible:
    """Any endpoint that speaks OpenAI's chat-completions protocol.

    endpoint: its base address, as in https://api.openai.com/v1 or http://127.0.0.1:8000/v1.
    model: the model's name there (gpt-4o-mini in the study).
    api_key_env: the environment variable that holds the key; null sends none (local servers).
    temperature: sampling temperature.
    workers: requests under way at once.
    retries: further tries after a passing failure (no answer, HTTP 429 or 5xx), waiting 1, 2, 4, … seconds
        between them or as long as the endpoint says.
    timeout: seconds to wait for an answer.
    cache: folder of the answers; endpoint, model and temperature are part of what they are remembered under.
    """

    endpoint: str = "https://api.openai.com/v1"
    model: str = "gpt-4o-mini"
    api_key_env: str | None = "OPENAI_API_KEY"
    temperature: float = 0.0
    workers: int = 8
    retries: int = 5
    timeout: float = 60.0
    cache: str = "cache/paraphrases"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: an address that is not one, or a number out of range.
        """
        self._check_address()
        if self.api_key_env is not None and not is_variable(self.api_key_env):
            raise UserError(
                "dataset.paraphrase.api_key_env=***: this is no name of an environment variable; is it the key itself? "
                "export it under a name, as in OPENAI_API_KEY, and give that name"
            )
        for key, low in (("temperature", 0), ("workers", 1), ("retries", 0), ("timeout", 0.001)):
            if getattr(self, key) < low:
                raise UserError(f"dataset.paraphrase.{key}={getattr(self, key)}: must be at least {low}")

    def _check_address(self) -> None:
        where = f"dataset.paraphrase.endpoint={masked(self.endpoint)}"
        try:
            parts = urllib.parse.urlsplit(self.endpoint)
            _ = parts.port
        except ValueError as error:
            raise UserError(f"{where}: not an address ({masked(str(error))})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{where}: must begin with http:// or https:// and name a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError(
                f"dataset.paraphrase.endpoint={parts.scheme}://{parts.hostname}/…: holds a login or a parameter, and "
                "configurations are kept in run folders; give the bare address, and the key by a variable (api_key_env)"
            )
        if any(letter.isspace() or not letter.isprintable() for letter in self.endpoint):
            raise UserError(f"{where}: holds a blank or a control character")

    def settings(self) -> dict[str, Any]:
        """Return what an answer depends on."""
        return {"endpoint": self.endpoint, "model": self.model, "temperature": self.temperature}

    def paraphrase(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield one paraphrase per text, in order.

        Raises:
            UserError: the key is missing, the endpoint refuses, or it keeps failing.
        """
        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise UserError(
                    f"dataset.paraphrase.api_key_env={self.api_key_env}: this environment variable is not "
                    "set; export it, or set api_key_env=null for an endpoint without keys"
                )
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(self._ask, text, key) for text in texts]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _ask(self, text: str, key: str | None) -> str:
        turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
        body = {"model": self.model, "messages": turns, "temperature": self.temperature}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        url = f"{self.endpoint.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        for attempt in range(self.retries + 1):
            wait = 2.0**attempt
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return self._content(response.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in PASSING:
                    break
                wait = seconds(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(wait)
        raise UserError(
            f"dataset.paraphrase.endpoint={self.endpoint}: no paraphrase ({masked(' '.join(problem.split()), key)}); "
            "check endpoint, model and key, and run again: what was answered is kept"
        )

    def _content(self, answer: bytes) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
            return as_text("" if content is None else content, "the answer")
        except (UserError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"dataset.paraphrase.endpoint={self.endpoint}: the answer is not a chat completion "
                f"({answer[:80].decode(errors='replace')!r}); is this the base "
                "address of an OpenAI-compatible API?"
            ) from error


def seconds(header: str | None, otherwise: float) -> float:
    """Read a Retry-After header given in seconds; a date or nothing gives `otherwise`."""
    return float(header) if header is not None and header.strip().isdigit() else otherwise


@dataclass
class LocalModel:
    """A Hugging Face causal language model, decoding greedily so that the same text gives the same paraphrase.

    model: hub id or folder; revision: of the hub id (null: its main one).
    batch_size: texts per batch.
    max_new_tokens: the longest paraphrase; a longer one is cut.
    device: auto (cuda where there is one), cpu or cuda.
    trust_remote_code: run Python code that comes with the model.
    cache: folder of the answers; model, revision and max_new_tokens are part of what they are remembered under.

    The tokenizer's chat template is used where it has one, else system prompt and text stand under each other.
    """

    model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    revision: str | None = None
    batch_size: int = 8
    max_new_tokens: int = 512
    device: str = "auto"
    trust_remote_code: bool = False
    cache: str = "cache/paraphrases"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a number below 1.
        """
        if self.device not in ACCELERATORS:
            raise unknown("value", self.device, ACCELERATORS, "dataset.paraphrase.device")
        for key in ("batch_size", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise UserError(f"dataset.paraphrase.{key}={getattr(self, key)}: must be at least 1")

    def settings(self) -> dict[str, Any]:
        """Return what an answer depends on."""
        named = {"model": self.model, "revision": self.revision, "max_new_tokens": self.max_new_tokens}
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            return named
        from tdaexp.models.source import content

        return {**named, "content": content(folder)}

    def paraphrase(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield one paraphrase per text, in order, batch by batch.

        Raises:
            UserError: the model cannot be loaded, or its chat template has no place for a system prompt.
        """
        import torch

        present = torch.cuda.is_available()
        if self.device == "cuda" and not present:
            raise UserError("dataset.paraphrase.device=cuda: this machine offers no CUDA device; set it to auto or cpu")
        device = "cuda" if present and self.device != "cpu" else "cpu"
        tokenizer, model = self._load(device)
        for start in range(0, len(texts), self.batch_size):
            prompts = [instruct(tokenizer, text) for text in texts[start : start + self.batch_size]]
            special = not tokenizer.chat_template  # a chat template writes its special tokens itself
            batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=special).to(device)
            with torch.inference_mode():
                output = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            yield from tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def _load(self, device: str) -> tuple[Any, Any]:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from tdaexp.models.hub import reason_of
        from tdaexp.models.kinds import check_kind
        from tdaexp.models.loaded import quiet_transformers

        where, named = f"dataset.paraphrase.model={self.model}", {"revision": self.revision}
        trusted = self.trust_remote_code
        try:
            with quiet_transformers():
                check_kind(from_hub(AutoConfig, self.model, trust_remote_code=trusted, **named), where)
                tokenizer = from_hub(AutoTokenizer, self.model, trust_remote_code=trusted, padding_side="left", **named)
                model = from_hub(AutoModelForCausalLM, self.model, trust_remote_code=trusted, dtype="auto", **named)
        except UserError:
            raise
        except Exception as error:  # a damaged file, a pickle, no network: each library has classes of its own
            trust = "set dataset.paraphrase.trust_remote_code=true if you trust its authors"
            raise UserError(f"{where}: cannot load ({reason_of(error, trust)})") from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.eval().to(torch.device(device))


def instruct(tokenizer: Any, text: str) -> str:
    """Put a text under the paraphrasing prompt, as the tokenizer's chat template does or plainly."""
    if not tokenizer.chat_template:
        return f"{SYSTEM_PROMPT}\n\nText: {text}\nParaphrase:"
    turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
    try:
        return str(
            within(SECONDS, lambda: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        )
    except Exception as error:
        told = f"{type(error).__name__}: {reason(error)}"
        raise UserError(
            f"dataset.paraphrase.model: its chat template refuses a system prompt ({told}); take another model"
        ) from error
