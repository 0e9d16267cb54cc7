"""From a checked configuration to a plan of its costs: no model is loaded, nothing is downloaded."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from tdaexp.data.records import Corpus
from tdaexp.methods.explaind import Explaind
from tdaexp.methods.magic import Magic
from tdaexp.models.task import TaskModel
from tdaexp.planning import metagradients
from tdaexp.planning.before import of_task, of_texts
from tdaexp.planning.paths import of_checkpoints, of_recording
from tdaexp.planning.rehearsed import rehearse
from tdaexp.planning.task_work import TaskWork
from tdaexp.planning.tasks import NotAtHand, recorded_work, task_work
from tdaexp.planning.texts import processes, text_work
from tdaexp.runtime.costs import CostPlan, Machine, StageCost, assumed_rate
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import Rehearsal
from tdaexp.runtime.rehearsed_store import rehearsing
from tdaexp.training.task import check_pair

log = logging.getLogger(__name__)


SMALL_FLOP = 1e12
"""Of one pass over all examples: what takes less is run sooner than planned, unless a plan is asked for."""


class NotRehearsed(UserError):
    """A method that does what tensors without numbers cannot; it may run all the same."""


class TooSmall(UserError):
    """Work that nobody needs a plan of."""


@dataclass(frozen=True)
class Planned:
    """Stages of the method and those `before` it, what is known of the sizes, and what was assumed of them."""

    stages: list[StageCost]
    before: list[StageCost]
    summary: str
    assumed: list[str]


def plan_of(config: Any, corpus: Corpus | None = None, least: float = 0.0) -> CostPlan:
    """The plan of an attribute run; `corpus` is the data where it has been read already.

    Errors (UserError): a model without a stated shape, data that is neither at hand nor assumed, a method that cannot
    be rehearsed, or a pass over all examples of less than `least` FLOP.
    """
    if config.products is not None:
        raise UserError("plan: a run on stored products runs no model and needs no plan; leave plan=true out")
    try:
        found = planned(config, corpus, least)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # somebody's own code, run where nothing has a value
        said = " ".join(str(error).split())[:200]
        raise NotRehearsed(
            f"plan: none, method={config.method.name} cannot be run on tensors without numbers "
            f"({type(error).__name__}: {said})"
        ) from error
    if config.self_influence:
        found.assumed.append("self_influence=true is left out: a pass more over each training example, twice")
    title = f"plan: model {config.model.name}, data {type(config.dataset).__name__}, method {config.method.label}"
    return CostPlan(
        f"{title}, {config.trainer.precision}; {found.summary}",
        [*found.before, *found.stages],
        machine_of(config.trainer),
        found.assumed,
    )


def planned(config: Any, corpus: Corpus | None = None, least: float = 0.0) -> Planned:
    """What an attribute run does, on tensors without numbers; arguments and errors as for `plan_of`."""
    rehearsal, explains = Rehearsal(), isinstance(config.method, Explaind)
    if check_pair(config.model, config.dataset):
        return _of_task(config, *task_work(config, rehearsal), least)
    if explains and config.trainer.fit.record:
        return _of_task(config, recorded_work(config, corpus, rehearsal), [], least)
    work, assumed = text_work(config, corpus, rehearsal)
    _refuse_small(work.pass_flop, least)
    with rehearsing(rehearsal):
        before = of_texts(config, work)
        if explains:
            return Planned(of_checkpoints(config.method, work), before, work.summary, assumed)
        if isinstance(config.method, Magic):
            told = metagradients.of_texts(config.method, work, config.trainer.fit)
            return Planned(told, before, work.summary, assumed)
        both, problem = config.method.both_stages and work.finetune is not None, work.problem(config.seed)
        problem = problem if both else problem.after(config.stage)
        stages = rehearse(config.method, problem, rehearsal, work.weights * (1 + both))
        return Planned(stages, before, work.summary, assumed)


def _refuse_small(flop: float, least: float) -> None:
    if flop < least:
        raise TooSmall(f"plan: none, a pass over all examples takes {flop / 1e12:.1g} TFLOP; plan=true counts the rest")


def _of_task(config: Any, work: TaskWork, assumed: list[str], least: float) -> Planned:
    """A recorded training, or scores of a classifier's pairs."""
    with rehearsing(work.rehearsal):
        _refuse_small(work.pass_flop, least)
        before = of_task(work)
        if isinstance(config.method, Explaind):
            return Planned(of_recording(config.method, work), before, work.summary, assumed)
        if isinstance(config.method, Magic):
            return Planned(metagradients.of_task(config.method, work), before, work.summary, assumed)
        problem = work.problem(config.dataset.query_sets[0], config.seed)
        stages = rehearse(config.method, problem, work.rehearsal, work.weights, work.inputs)
        return Planned(stages, before, work.summary, assumed)


def tell_plan(config: Any, corpus: Corpus | None = None) -> None:
    """Log the plan in one line, before anything is loaded, and what will not fit; a model of unknown shape has none."""
    if not (isinstance(config.model, TaskModel) or config.model.needs_training or config.model.stated):
        log.info("plan: none, the sizes of %s are not stated (model.shape)", config.model.pretrained)
        return
    try:
        plan = plan_of(config, corpus, SMALL_FLOP)
    except TooSmall as error:
        log.info("%s", error)
        return
    except NotAtHand:
        log.info("plan: none, the tokenizer of %s is not at hand", config.model.pretrained)
        return
    except NotRehearsed as error:
        log.warning("%s", error)
        return
    log.info("%s", plan.line())
    for problem in plan.problems:
        log.warning("too small: %s", problem)


def machine_of(trainer: Any) -> Machine:
    """The device that the trainer's settings mean, present or not, its rate and memory."""
    present = torch.cuda.is_available()
    cuda = trainer.accelerator == "cuda" or (trainer.accelerator == "auto" and present)
    threads = trainer.threads or torch.get_num_threads()
    kind = f"CPU, {threads} threads" if not cuda else torch.cuda.get_device_name() if present else "some CUDA device"
    usual = assumed_rate(kind, trainer.precision) if cuda else threads * assumed_rate("cpu", trainer.precision)
    memory = None if trainer.device_gb is None else trainer.device_gb * 1e9
    if memory is None and cuda and present:
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    host = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if not cuda:
        host = min(host, memory or host)
    return Machine(kind, cuda, trainer.rate_tflops or usual, memory, host, processes(trainer), trainer.nodes)
