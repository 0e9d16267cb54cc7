"""Tokens and their shares of a pair's score, from the data set that holds them: as a file, and shaded for the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tdaexp import influence

LEVELS = 8  # of shading; a token below half a level is left white


@dataclass(frozen=True)
class Piece:
    """A token's text and share; `shade` is `p` (raises the score) or `n` with a level, "" for next to nothing."""

    text: str
    share: str
    shade: str


@dataclass(frozen=True)
class Shaded:
    """A pair's training text and query as the method `label` shades them."""

    label: str
    train: list[Piece]
    query: list[Piece]


def token_rows(dataset: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Pairs whose tokens were asked for: ids, rank from 1, score, tokens and shares of both; the shares sum to it."""
    for part in influence.blocks(dataset):
        yield from _rows_of(part)


def _rows_of(dataset: xr.Dataset) -> Iterator[dict[str, Any]]:
    scores = influence.scores(dataset).values
    for row, rank in zip(*np.nonzero(dataset["best"].values >= 0), strict=True):
        column = dataset["best"].values[row, rank]
        shares = {side: dataset[f"{side}_share"].values[row, rank] for side in ("train", "query")}
        tokens = {"train": dataset["train_token"].values[row, rank], "query": dataset["query_token"].values[row]}
        yield {
            "query_set": dataset["query_set"].values[row],
            "query": dataset["query"].values[row],
            "train": dataset["train"].values[row, column],
            "rank": int(rank) + 1,
            "score": float(scores[row, column]),
            **{
                f"{side}_{kind}": values[side][~np.isnan(shares[side])].tolist()
                for side in shares
                for kind, values in (("tokens", tokens), ("shares", shares))
            },
        }


def tokens_json(dataset: xr.Dataset) -> str:
    """The pairs as a JSON list, one to a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in token_rows(dataset)) + "\n]\n"


def shaded_pairs(datasets: dict[str, xr.Dataset]) -> dict[tuple[str, str, str], list[Shaded]]:
    """Query set, query and training id to what each store has of the pair's tokens, in the stores' order."""
    found: dict[tuple[str, str, str], list[Shaded]] = {}
    for label, dataset in datasets.items():
        for row in token_rows(dataset) if "train_share" in dataset else ():
            sides = [shade(row[f"{side}_tokens"], row[f"{side}_shares"]) for side in ("train", "query")]
            found.setdefault((row["query_set"], row["query"], row["train"]), []).append(Shaded(label, *sides))
    return found


def shade(tokens: list[str], shares: list[float]) -> list[Piece]:
    """Tokens with levels in proportion to their shares; the largest has the highest."""
    largest = max(map(abs, shares), default=0.0) or 1.0
    levels = [round(LEVELS * abs(share) / largest) for share in shares]
    return [
        Piece(token, f"{share:.3g}", f"{'p' if share > 0 else 'n'}{level}" if level else "")
        for token, share, level in zip(tokens, shares, levels, strict=True)
    ]
