"""The command lines whose results are kept: one table, so that a key that is renamed is renamed here alone.

Words between {} stand for the folder of another case's run, or for the model that another case trained.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT = 1e-7
"""Float64 from end to end. Measured between vector units, threads and BLAS kernels (none, AVX2, AVX-512): at most
4e-12, of which 3e-12 are the digits that are kept; 8e-9 where a solver stops a step sooner or later."""
CLOSE = 2e-5
"""Something is computed or kept in float32 or in 8 bits whatever the precision: norms and softmax of Llama, OLMo and
BLOOM, GPT-NeoX's rotations, weights that torch draws, kept gradients. Measured: at most 1.2e-6."""
RECORDED = 2e-4
"""A recorded training is float32, and so is its decomposition. Measured: at most 1.9e-5 (entropy), with an `eps` that
keeps AdamW from scaling up the rounding of gradients that are zero but for it (keys' biases); 6e-3 without that."""

CPU = ("logger=none", "trainer.accelerator=cpu")
TRAINING = (*CPU, "trainer.precision=float64")
QUIET = (*CPU, "metric.plots=false", "metric.bootstrap=10", "metric.folds=2")
DOUBLE = (*QUIET, "trainer.precision=float64")
LIST = ("dataset=text", "dataset.path=train.jsonl", "dataset.id_column=id")
PAIRS = (*LIST, "dataset.prompt_column=prompt", "dataset.completion_column=completion")
ASKED = ("dataset.query_path=queries.jsonl", "dataset.query_sets=[paraphrased]", "dataset.truth_column=source")
FEW = (*PAIRS, *ASKED, "candidates.b=3")
ALL = (*FEW[:-1], "candidates=all")
HUB = ("model=dolly3b", "model.template=plain")

GPT2 = (*DOUBLE, *HUB, "model.pretrained=gpt2")
LLAMA = (*DOUBLE, "model=eurollm1b7", "model.pretrained=llama")
NEOX = (*DOUBLE, *HUB, "model.pretrained=gpt_neox")
SECOND = (*NEOX, "model.finetuned=neox-after", "dataset.finetune_path=second.jsonl", *ALL)
CHOOSING = (*NEOX, *LIST, "dataset.text_column=text", *ASKED, "candidates=all", "model.finetuned=neox-classifier",
            "dataset.label_column=side", "dataset.finetune_path=second-classes.jsonl")  # fmt: skip
FIT = ("trainer.fit.steps=4", "trainer.fit.batch_size=4", "trainer.fit.warmup=1", "trainer.fit.checkpoint_every=2")
IMAGES = ("model=mnist_cnn", "model.padding=1", "model.channels=[2,3]", "model.hidden=5", "model.start=cnn.safetensors",
          "dataset=digits", "dataset.train=12", "dataset.test=8", "dataset.query_limit=4")  # fmt: skip
SUMS = ("model=grokking", "model.hidden=8", "model.heads=2", "model.inner=12", "model.start=sums.safetensors",
        "dataset=modular_addition", "dataset.modulus=7", "dataset.train=10", "dataset.test=8",
        "dataset.query_limit=3")  # fmt: skip
CLASSIFIER = (*DOUBLE, *IMAGES, "trainer.fit.steps=0")
ADDITION = (*DOUBLE, *SUMS, "trainer.fit.steps=0")
CALM = "trainer.fit.eps=1e-2"
EPOCHS = ("trainer.fit.steps=4", "trainer.fit.batch_size=5")
RECORDING = (*QUIET, *IMAGES, *EPOCHS, "method=explaind")
SMOOTH = (*RECORDING, "model.activation=gelu")
GROKKING = (*QUIET, *SUMS, "trainer.fit.steps=3", "trainer.fit.batch_size=10", CALM, "method=explaind")
WRITING = (*QUIET, *LLAMA[-2:], *FEW[:-1], *FIT, "trainer.fit.record=1", "trainer.fit.clip=0", CALM)
LISTED = (*GPT2, "model=eurollm1b7", "model.checkpoints=[checkpoints]", *LIST, "dataset.text_column=text",
          "dataset.group_column=kind", "dataset.held_out=4", "trainer.fit.batch_size=4", "method=explaind",
          "method.output=loss")  # fmt: skip
STORED = (*QUIET, "products=products.npz")


@dataclass(frozen=True)
class Case:
    """`stage`.py with these arguments; numbers agree within `tolerance` of the largest of their array."""

    arguments: tuple[str, ...]
    tolerance: float = EXACT
    stage: str = "attribute"


def _cases(
    problem: str, common: tuple[str, ...], lines: str, tolerance: float = EXACT, stage: str = "attribute"
) -> dict[str, Case]:
    """One case to a line: `NAME: ARGUMENTS`."""
    found = {}
    for line in filter(None, lines.splitlines()):
        name, _, own = line.strip().partition(": ")
        found[f"{problem}/{name}"] = Case((*common, *own.split()), tolerance, stage)
    return found


SOLVER = "method.examples=null method.queries=null method.relative_damping=3"
ARNOLDI = "method.preconditioner=arnoldi method.arnoldi_steps=10"
SIMILARITY = """
full: method=full
full-sum: method=full method.reduction=sum
dot: method=dot
select: method=select budget=0.3
select-fidelity: method=select_fidelity budget=0.3
select-file: method=select method.selection=chosen.txt
select-on-ekfac: method=select method.on=ekfac budget=0.3
project: method=project budget=0.3
project-srht: method=project method.projection=srht budget=0.3
project-sjlt: method=project method.projection=sjlt budget=0.3
project-trak: method=project method.projection=trak budget=0.3
project-paper: method=project_paper budget=0.01 method.components=[layers.1.attn.v]
cka: method=cka
cka-states: method=cka method.of=states
repsim: method=repsim
repsim-mean: method=repsim method.layer=1 method.pooling=mean
bm25: method=bm25
random: method=random
"""
CURVATURE = f"""
ekfac: method=ekfac
ekfac-kfac: method=ekfac method.mode=kfac
ekfac-diagonal: method=ekfac method.mode=diagonal
ekfac-identity: method=ekfac method.mode=identity
ekfac-mlp: method=ekfac_mlp
ekfac-signs: method=ekfac method.fisher=signs
ekfac-joint: method=ekfac method.curvature_blocks=joint method.block_samples=16
ekfac-layer: method=ekfac method.curvature_blocks=layer method.block_samples=16
ekfac-sum: method=ekfac method.reduction=sum method.part=attention method.damping=0.1
ekfac-tokens: method=ekfac method.per_token=2
ekfac-answer: method=ekfac method.measurement=answer_log_probability
ekfac-first: method=ekfac method.measurement=first_token_logit
ekfac-own: method=ekfac method.measurement=golden_measurement:certainty
cg: method=cg method.preconditioner=none method.tolerance=1e-8 {SOLVER}
cg-early: method=cg method.iterations=3 {ARNOLDI} {SOLVER} method.damping=0.1
cg-ekfac: method=cg method.preconditioner=ekfac method.iterations=3 {SOLVER}
astra: method=astra method.steps=6 method.batch_size=4 {SOLVER}
lissa: method=lissa method.depth=4 method.repeats=2 method.batch_size=4 {SOLVER}
arnoldi: method=arnoldi method.steps=12 method.rank=6 {SOLVER}
logra: method=logra method.dimensions=16
logra-kfac: method=logra method.init=kfac method.dimensions=12 method.measurement=answer_log_probability
logra-random: method=logra method.init=random method.dimensions=9 method.part=mlp method.damping=0.1
datainf: method=datainf
datainf-all: method=datainf method.part=all method.reduction=sum method.relative_damping=1
trackstar: method=trackstar method.dimensions=16
trackstar-none: method=trackstar method.dimensions=9 method.precondition=none method.mix=0.5
trak: method=trak method.dimensions=4
trak-factorised: method=trak method.dimensions=4 method.projection=factorised method.part=mlp method.ridge=0.1
"""
GROUPED_HEADS = f"""
full: method=full
select: method=select budget=0.3
ekfac: method=ekfac
cg: method=cg method.preconditioner=none method.tolerance=1e-6 {SOLVER}
trak: method=trak method.dimensions=4
"""
BOTH_STAGES = """
multistage: method=multistage
multistage-mixed: method=multistage method.mode=diagonal method.finetuned_mode=ekfac method.finetuned_damping=0.2
multistage-sum: method=multistage method.reduction=sum method.part=mlp method.measurement=logit_margin
multistage-rank: method=multistage method.query_rank=2 method.partitions=2
multistage-tokens: method=multistage method.per_token=2 method.finetuned_relative_damping=1
multistage-dot: method=multistage_dot
ekfac-finetuned: method=ekfac stage=finetuned
"""
CLASSES = """
ekfac: method=ekfac
ekfac-kfac: method=ekfac method.mode=kfac
ekfac-rank: method=ekfac method.query_rank=1 method.measurement=logit_margin
logra: method=logra method.dimensions=16
datainf: method=datainf
full: method=full
dot: method=dot
select-on-ekfac: method=select method.on=ekfac budget=0.3
sample: method=random candidates=sample candidates.b=5 dataset.query_sets=[test,train]
"""
SECANT = """
steps: method.keep=[step,component]
reverse: method.keep=[step,component,query,output] method.mode=reverse
forward: method.keep=[step,component,query,output] method.mode=forward
pairs: method.keep=[query,train] method.output=margin
single: method.keep=[train,component] method.single=5
parts: method.keep=[part,component] method.partition=target method.output=target_logit
probabilities: method.keep=[output] method.output=log_probabilities
probability: method.keep=[step] method.output=probability method.subsample=0.5
entropy: method.keep=[component] method.output=entropy method.subsample=0.5 method.subsample_by=uniform
coordinate: method.keep=[query,component] method.output=coordinate:3 method.steps=[2,3]
activation: method.keep=[component,output] method.output=activation:fc1
sgd: method.keep=[query,train] method.output=margin trainer.fit.optimizer=sgd trainer.fit.momentum=0.9
every-2nd: method.keep=[step,component] trainer.fit.record=2
"""
QUADRATURE = """
gauss: method.keep=[query,train] method.output=margin
gauss-steps: method.keep=[step,component] method.quadrature.nodes=3
midpoint: method.keep=[component,query] method.quadrature.rule=midpoint method.quadrature.nodes=2
trapezoid: method.keep=[component,query] method.quadrature.rule=trapezoid method.quadrature.nodes=2
left: method.keep=[component,query] method.quadrature.rule=left
tolerance: method.keep=[step,component] method.quadrature.tolerance=0.001 method.quadrature.most=4
"""
ADDED = """
steps: method.keep=[step,component]
pairs: method.keep=[query,train,component] method.output=margin
residues: method.keep=[part,query] method.partition=meta:residue method.output=loss
"""
WRITTEN = """
pairs: method.keep=[train,query] method.output=loss
steps: method.keep=[step,component] method.output=margin
"""
CHECKPOINTS = """
steps: method.quadrature.nodes=2
groups: method.keep=[step,component,train,query]
fresh: model.missing_state=fresh model.checkpoints=[bare] trainer.fit.clip=0
"""
PRODUCTS = """
select: method=select budget=0.5
select-fidelity: method=select_fidelity budget=0.5
select-single: method=select method.objective=single budget=0.5
full: method=full
bm25: method=bm25
"""
KEPT = """
tracin: method=tracin
tracin-step: method=tracin method.steps=[4] method.reduction=sum
trak-all: method=trak method.dimensions=4 method.checkpoints=all
source-sgd: method=source method.segments=2 method.form=sgd
"""
TRAINED = """
tracin: method=tracin
source: method=source method.segments=2
less: method=less
trackstar: method=trackstar method.dimensions=16
dot-adamw: method=dot method.precondition=adamw
project-adamw: method=project method.precondition=adamw budget=0.3
"""
FROM_SCRATCH = ("model=toy_gpt", "model.config.hidden_size=8", "model.config.num_hidden_layers=1",
                "model.config.num_attention_heads=2", "model.config.intermediate_size=12", "model.vocab_size=270",
                "model.context=48")  # fmt: skip
ANALYSED = (*QUIET, *IMAGES, *EPOCHS)

CASES: dict[str, Case] = {
    **_cases("texts", (*GPT2, *FEW), SIMILARITY + CURVATURE),
    **_cases("texts", (*GPT2, *FEW), "ekfac-kept: method=ekfac method.keep_gb=1", CLOSE),
    "texts/generated": Case(
        (*GPT2, *FEW, "method=full", "dataset.query_sets=[paraphrased,generated]", "decoding.max_new_tokens=3")
    ),
    "texts/whole": Case((*GPT2, *ALL, "method=dot", "dataset.loss_on=all", "dataset.append_eos=false")),
    **_cases("llama", (*LLAMA, *FEW), GROUPED_HEADS, CLOSE),
    **_cases("neox", (*NEOX, *FEW), "full: method=full", CLOSE),
    **_cases("bloom", (*DOUBLE, *HUB, "model.pretrained=bloom", *FEW), "full: method=full", CLOSE),
    **_cases("olmo", (*DOUBLE, *HUB, "model.pretrained=olmo", *FEW), "full: method=full", CLOSE),
    **_cases("two-stages", SECOND, BOTH_STAGES, CLOSE),
    **_cases("to-classes", CHOOSING, "multistage: method=multistage", CLOSE),
    **_cases("classifier", CLASSIFIER, CLASSES),
    **_cases("classifier", CLASSIFIER, "ekfac-kept: method=ekfac method.keep_gb=1", CLOSE),
    **_cases("addition", ADDITION, "ekfac: method=ekfac\nfull: method=full"),
    "kept/trained": Case((*TRAINING, *HUB, "model.pretrained=gpt2", *PAIRS, *ASKED, *FIT, "trainer.fit.keep=all"),
                         stage="train"),
    **_cases("kept", (*DOUBLE, *HUB, "model.pretrained={model:kept/trained}", *FEW), KEPT),
    **_cases("scratch", (*DOUBLE, *FROM_SCRATCH, *FIT, *FEW), TRAINED, CLOSE),
    **_cases("recorded", RECORDING, SECANT, RECORDED),
    **_cases("smooth", SMOOTH, QUADRATURE, RECORDED),
    **_cases("grokking", GROKKING, ADDED, RECORDED),
    **_cases("written", (*WRITING, "method=explaind"), WRITTEN, RECORDED),
    "back/classifier": Case((*QUIET, *IMAGES, *EPOCHS, CALM, "model.activation=gelu", "method=magic"), RECORDED),
    "back/texts": Case((*QUIET, *FROM_SCRATCH, *FIT, *FEW, CALM, "method=magic"), RECORDED),
    **_cases("checkpoints", LISTED, CHECKPOINTS),
    **_cases("products", STORED, PRODUCTS),
    "judged/texts": Case(
        (*QUIET, "metric.reference=cg",
         "runs=[{run:texts/cg},{run:texts/ekfac},{run:texts/full},{run:texts/bm25},{run:texts/select}]"),
        stage="evaluate",
    ),
    "judged/lds": Case(
        (*QUIET, "metric=[retrieval,lds]", "metric.lds.subsets=6", "metric.lds.left_out=0.3", "metric.lds.ceiling=3",
         "metric.retraining.starts=[same,own]", "runs=[{run:written/pairs}]"), RECORDED, "evaluate",
    ),
    "judged/pruning": Case(
        (*ANALYSED, "analysis=explaind_fig2", "analysis.seeds=1", "analysis.sparsities=[0.5,0.9]",
         "analysis.queries=6"), RECORDED, "evaluate",
    ),
    "judged/subsampling": Case(
        (*ANALYSED, "analysis=explaind_subsampling", "analysis.held_out=4", "analysis.shares=[0.5,1]",
         "analysis.draws=2", "runs=[{run:recorded/reverse}]"), RECORDED, "evaluate",
    ),
    "judged/table1": Case(
        (*ANALYSED, "analysis=explaind_table1", "runs=[{run:recorded/steps},{run:smooth/gauss-steps}]"),
        RECORDED, "evaluate",
    ),
    "judged/checkpoints": Case(
        (*QUIET, *HUB, "analysis=explaind_eurollm", "runs=[{run:checkpoints/steps}]"), stage="evaluate",
    ),
}  # fmt: skip
