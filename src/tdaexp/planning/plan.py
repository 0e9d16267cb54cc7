"""From a checked configuration to a plan of its costs: no model is loaded, nothing is downloaded."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from tdaexp.data.records import Corpus
from tdaexp.methods.explaind import Explaind
from tdaexp.models.task import TaskModel
from tdaexp.planning.recordings import NotAtHand, recorded_workload, task_problem, task_workload
from tdaexp.planning.rehearsed import rehearse, tiled
from tdaexp.planning.workload import Prepared, processes, text_problem, text_workload
from tdaexp.runtime.costs import CostPlan, Machine, StageCost, assumed_rate
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsed_store import rehearsing
from tdaexp.training.task import check_pair

log = logging.getLogger(__name__)


def plan_of(config: Any, corpus: Corpus | None = None) -> CostPlan:
    """The plan of an attribute run; `corpus` is the data where it has been read already.

    Errors (UserError): a model without a stated shape, data that is neither at hand nor assumed.
    """
    if config.products is not None:
        raise UserError("plan: a run on stored products runs no model and needs no plan; leave plan=true out")
    machine, task = machine_of(config.trainer), check_pair(config.model, config.dataset)
    if config.method.hand_planned:
        stages, work, before, assumed = _by_hand(config, corpus, task)
    else:
        stages, work, before, assumed = _rehearsed(config, corpus, task)
    title = f"plan: model {config.model.name}, data {type(config.dataset).__name__}, method {config.method.label}"
    return CostPlan(f"{title}, {config.trainer.precision}; {work.summary()}", [*before, *stages], machine, assumed)


Planned = tuple[list[StageCost], Any, list[StageCost], list[str]]
"""The method's stages, the sizes, the stages before it, and what was assumed."""
OF_TASKS = ("explaind", "random")


def _by_hand(config: Any, corpus: Corpus | None, task: bool) -> Planned:
    """What a method tells of itself."""
    method = config.method
    if task:
        prepared: Prepared = task_workload(config)
    elif isinstance(method, Explaind) and config.trainer.fit.record:
        prepared = recorded_workload(config, corpus)
    else:
        prepared = text_workload(config, corpus)
    work, before, assumed = prepared
    stages = method.rehearsed.plan(work) if not task or method.name in OF_TASKS else []
    if not stages:
        where = "on a classification task" if task else "with these settings"
        assumed.append(f"method '{method.name}' states no costs of its own {where}; its stages are left out")
    return stages, work, before, assumed


def _rehearsed(config: Any, corpus: Corpus | None, task: bool) -> Planned:
    """What a method does on fake tensors."""
    with rehearsing() as rehearsal:
        if task:
            known, before, assumed = task_workload(config)
            problem, loaded, inputs = task_problem(config, known, rehearsal), 4.0 * known.size, known.inputs
            work: Any = known
        else:
            both = config.method.both_stages
            work, before, assumed = text_workload(config, corpus, rehearsal.fake)
            problem, loaded, inputs = text_problem(config, work, rehearsal), work.weights * (1 + both), 0.0
            problem = problem if both else problem.after(config.stage)
        rehearsal.same_candidates = tiled(problem.pairs)
        return rehearse(config.method, problem, rehearsal, loaded, inputs), work, before, assumed


def tell_plan(config: Any, corpus: Corpus | None = None) -> None:
    """Log the plan in one line, before anything is loaded, and what will not fit; a model of unknown shape has none."""
    if not (isinstance(config.model, TaskModel) or config.model.needs_training or config.model.stated):
        log.info("plan: none, the sizes of %s are not stated (model.shape)", config.model.pretrained)
        return
    try:
        plan = plan_of(config, corpus)
    except NotAtHand:
        log.info("plan: none, the tokenizer of %s is not at hand", config.model.pretrained)
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
