"""What several runs of analysis=grokking say together: each claim of ExPLAIND's section 5 over seeds and settings.

Reads what those runs wrote (`metrics.json`, `config.yaml`, curves), so that it trains and decomposes nothing. Runs of
one model and pair of betas are one setting, and differ in their seeds. A claim's verdict is that of the reference:

- reproduced: it holds in a share of at least `agreed` of the seeds that have its numbers;
- contradicted, cause found: it holds in at most 1 − `agreed` of them, and in `agreed` of the seeds it does hold in
  another reading of the same runs, or in another setting that differs in the model or the betas alone: the cause;
- not reproduced: all else.

A seed in which a claim's number does not exist (a model that never generalised has no final phase) does not count.
Intervals are those of the mean over seeds by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

from tdaexp.metrics.averaging import over_runs
from tdaexp.papers import geometry_claims, graft_claims, grokking_claims
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.papers.seeds_plots import courses
from tdaexp.papers.study_runs import Study, studies_in
from tdaexp.papers.transplant import rests
from tdaexp.papers.verdicts import BAD, CAUSE, GOOD, VERDICTS, Claim, Reading, holds
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.runtime.errors import UserError, unknown

Tally = tuple[int, int]
"""In how many seeds, of how many that have the numbers."""


@dataclass
class GrokkingSeeds(Analysis):
    """Keys: `studies`, folders or globs of runs of analysis=grokking; `reference`, the setting that verdicts are about,
    as `MODEL BETA1 BETA2`; `agreed`, the share of seeds from which on a claim holds; `confidence` of intervals.
    """

    needs_runs: ClassVar[bool] = False
    studies: list[str] = field(default_factory=list, metadata={"distinct": True})
    reference: str = "grokking_code 0.9 0.98"
    agreed: float = 0.8
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0.5 < self.agreed <= 1:
            raise UserError(f"analysis.agreed={self.agreed}: must be above 0.5, at most 1")
        if not 0 < self.confidence < 1:
            raise UserError(f"analysis.confidence={self.confidence}: must lie between 0 and 1")

    def run(self, evidence: Evidence) -> Findings:
        """Tallies, intervals and verdicts."""
        groups: dict[str, list[Study]] = {}
        for study in studies_in(self.studies):
            groups.setdefault(study.setting, []).append(study)
        if self.reference not in groups:
            raise unknown("setting", self.reference, list(groups), "analysis.reference")
        findings = Findings("Grokking over seeds: which findings hold, in how many, and why not")
        rows: list[dict[str, object]] = []
        for claim in _claims(next(iter(groups.values()))[0]):
            rows += self._rows(claim, groups, findings)
        findings.tables["claims"] = pd.DataFrame(rows)
        findings.tables["seeds"] = _seeds(groups)
        caption = (
            "Accuracy, and importance of kernel and regularisation as a share of its highest; a line for each seed."
        )
        findings.drawings.append(Drawing("courses", caption, courses(groups), wide=True))
        return findings

    def _rows(self, claim: Claim, groups: dict[str, list[Study]], findings: Findings) -> list[dict[str, object]]:
        """A row for each setting that has the claim's numbers; the statement and the metrics go to `findings`."""
        tallies = {setting: _tally(claim, runs) for setting, runs in groups.items()}
        tone, cause = self._verdict(claim, groups, tallies)
        rows, told, sentence = [], [], ""
        for setting, runs in groups.items():
            held, count = tallies[setting]
            if not count:
                continue
            mean = over_runs(_numbers(claim, runs), self.confidence)
            rows.append(
                {"claim": claim.name, "setting": setting, "held": held, "seeds": count, "number": claim.about}
                | {"mean": mean.value, "low": mean.low, "high": mean.high}
                | {
                    "verdict": VERDICTS.get(tone, "not run in the reference setting")
                    if setting == self.reference
                    else ""
                }
                | {"cause": cause if setting == self.reference else ""}
            )
            findings.metrics |= {
                f"held/{claim.name}/{setting}": held / count,
                f"mean/{claim.name}/{setting}": mean.value,
            }
            spread = f" [{mean.low:.3g}, {mean.high:.3g}]" if math.isfinite(mean.low) else ""
            told.append(f"{setting}: {held} of {count} seeds, {claim.about} {mean.value:.3g}{spread}")
            sentence = sentence or _sentence(claim, runs)
        if rows:
            text = "; ".join(told) + "." + (f" It holds {cause}." if cause else "")
            findings.statements.append(Statement(sentence, text, tone))
        return rows

    def _verdict(self, claim: Claim, groups: dict[str, list[Study]], tallies: dict[str, Tally]) -> tuple[str, str]:
        """The tone of the reference setting, and the cause in words where there is one."""
        held, count = tallies[self.reference]
        if not count:
            return "open", ""
        if self._agrees((held, count)):
            return GOOD, ""
        if held > (1 - self.agreed) * count + 1e-9:
            return BAD, ""
        runs = [study for study in groups[self.reference] if _number(claim, study) is not None]
        causes = [one.words for one in claim.readings if self._agrees((_holding(one, runs), len(runs)))]
        causes += [
            f"with {_difference(self.reference, setting)} ({tally[0]} of {tally[1]} seeds)"
            for setting, tally in tallies.items()
            if _difference(self.reference, setting) and tally[1] and self._agrees(tally)
        ]
        return (CAUSE, "; ".join(causes)) if causes else (BAD, "")

    def _agrees(self, tally: Tally) -> bool:
        return tally[0] >= self.agreed * tally[1] - 1e-9


def _claims(study: Study) -> list[Claim]:
    """The claims, those on grafts with the keys that the study had."""
    keys = study.analysis
    grafts = graft_claims.claims_of(keys["outer"], keys["pipelines"], keys["donors"], rests(keys["grafts"]))
    return [*grokking_claims.CLAIMS, *geometry_claims.CLAIMS, *grafts]


def _number(claim: Claim, study: Study) -> float | None:
    """The number that the claim turns on; None where the run does not have it, or it does not exist there."""
    try:
        value = claim.number(study.numbers)
    except KeyError:
        return None
    return value if math.isfinite(value) else None


def _numbers(claim: Claim, runs: Sequence[Study]) -> list[float]:
    return [value for value in (_number(claim, study) for study in runs) if value is not None]


def _tally(claim: Claim, runs: Sequence[Study]) -> Tally:
    counted = [study for study in runs if _number(claim, study) is not None]
    found = [claim.stated(study.numbers) for study in counted]
    return sum(one is not None and one.tone == GOOD for one in found), sum(one is not None for one in found)


def _holding(reading: Reading, runs: Sequence[Study]) -> int:
    return sum(holds(reading, study.numbers) for study in runs)


def _sentence(claim: Claim, runs: Sequence[Study]) -> str:
    found = [one for one in (claim.stated(study.numbers) for study in runs) if one is not None]
    return found[0].claim


def _difference(reference: str, other: str) -> str:
    """What the other setting differs in, where it is one thing: `model=…` or `betas …`."""
    (model, betas), (other_model, other_betas) = (one.split(" ", 1) for one in (reference, other))
    if (model == other_model) == (betas == other_betas):
        return ""
    return f"model={other_model}" if model != other_model else f"betas {other_betas.replace(' ', ', ')}"


def _seeds(groups: dict[str, list[Study]]) -> pd.DataFrame:
    """When each run memorised and generalised."""
    wanted = ("memorised", "grokked", "test_when_memorised", "test_at_the_end")
    rows = [
        {"setting": setting, "seed": study.seed} | {name: study.numbers.get(name, math.nan) for name in wanted}
        for setting, runs in groups.items()
        for study in runs
    ]
    return pd.DataFrame(rows)
