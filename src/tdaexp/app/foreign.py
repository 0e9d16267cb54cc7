"""Names from Lightning, transformers and earlier versions of ours, and what the same thing is called here."""

from __future__ import annotations

_OURS = """
trainer.fit.steps: max_steps num_steps n_steps total_steps max_train_steps num_train_steps iterations
trainer.fit.lr: learning_rate max_lr peak_lr base_lr
trainer.fit.batch_size: train_batch_size per_device_train_batch_size micro_batch_size global_batch_size
trainer.tokens_per_batch: eval_batch_size per_device_eval_batch_size max_tokens
trainer.fit.clip: gradient_clip_val max_grad_norm clip_grad_norm grad_clip
trainer.fit.warmup: warmup_steps num_warmup_steps lr_warmup_steps
trainer.fit.checkpoint_every: every_n_train_steps save_steps checkpoint_interval
trainer.fit.keep: save_top_k save_total_limit
trainer.fit.optimizer: optim optimizer_name
trainer.fit.schedule: lr_scheduler lr_scheduler_type scheduler
trainer.fit.evaluate_every: val_check_interval eval_steps check_val_every_n_epoch
trainer.fit.eps: adam_epsilon epsilon
trainer.nodes: num_nodes
trainer.devices: gpus num_gpus n_gpus n_gpu num_processes nproc_per_node world_size
trainer.accelerator: use_cpu no_cuda
trainer.precision: bf16 fp16 dtype torch_dtype mixed_precision
trainer.threads: num_workers num_threads dataloader_num_workers
seed: seed_everything random_seed manual_seed
model.pretrained: model_name_or_path pretrained_model_name_or_path model_path model_id ckpt_path
dataset.max_length: max_seq_length max_seq_len block_size seq_len
dataset.path: train_file data_path data_files train_path
dataset.hub: dataset_name
logger: report_to loggers
logger.project: project_name wandb_project
"""
KEYS = {
    theirs: ours for ours, _, names in (line.partition(": ") for line in _OURS.split("\n")) for theirs in names.split()
}
"""Their key: ours."""

_SAID = {
    "training is counted in steps, not in epochs: trainer.fit.steps (rows / trainer.fit.batch_size are an epoch)": (
        "max_epochs min_epochs num_epochs epochs num_train_epochs"
    ),
    "the run's folder is hydra.run.dir here": "default_root_dir output_dir save_dir log_dir dirpath",
    "gradients are not accumulated here: trainer.fit.batch_size is the whole batch of a step": (
        "accumulate_grad_batches gradient_accumulation_steps"
    ),
    "warming up is counted in steps here: trainer.fit.warmup": "warmup_ratio",
    "that is a key of Lightning's Trainer, which is not handed on; training is set by trainer.fit": (
        "enable_checkpointing enable_progress_bar enable_model_summary log_every_n_steps logging_steps callbacks "
        "plugins limit_train_batches limit_val_batches fast_dev_run profiler benchmark deterministic sync_batchnorm"
    ),
}
SAID = {theirs: said for said, names in _SAID.items() for theirs in names.split()}
"""Their key: what is different here."""

_EXPERIMENTS = {
    "table1 table2 fig4 fig5": "select_",
    "eurollm explaind_eurollm": "",
    "msif_single msif_table1 msif_table1_solvers msif_table1_baselines msif_case_study": "",
    "msif_fig1 msif_fig1_lissa msif_fig2 msif_fig3 msif_fig3_baselines": "",
}
RENAMED = {
    f"experiment=toy_{name}": f"experiment={paper}{name} scale=toy"
    for names, paper in _EXPERIMENTS.items()
    for name in names.split()
} | {
    "metric=standard": "metric=retrieval",
    "analysis=explaind_lds": "metric=lds",
    "method.deflate": "method.preconditioner=arnoldi (method.arnoldi_steps=N; or ekfac, none)",
}
"""Keys (`trainer.fit.lr`) and choices (`model=toy_gpt`) of earlier versions: how each is spelt now."""

_PRECISION = {
    **dict.fromkeys(("bf16-true", "bf16", "bf16-mixed", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("32-true", "32", "fp32", "float", "full", "torch.float32"), "float32"),
    **dict.fromkeys(("64-true", "64", "fp64", "double", "torch.float64"), "float64"),
}
_HALF = "float16 overflows in gradients and is not offered: take bfloat16 or float32"
_VALUES = {
    "trainer.precision": _PRECISION,
    "trainer.accelerator": dict.fromkeys(("gpu", "gpus", "cuda:0"), "cuda"),
    "trainer.devices": dict.fromkeys(("auto", "all", "-1"), "0"),
    "trainer.strategy": {
        "auto": "single",
        "ddp_spawn": "ddp",
        "ddp_notebook": "ddp",
        "ddp_find_unused_parameters_true": "ddp",
        "ddp_find_unused_parameters_false": "ddp",
        "deepspeed": "fsdp",
        "fsdp2": "fsdp",
    },
    "trainer.fit.optimizer": {"adam": "adamw", "AdamW": "adamw", "SGD": "sgd", "adamw_torch": "adamw"},
}


def key_hint(key: str, here: str) -> str | None:
    """What to write for another program's key, found in the node `here` ("", "trainer", …); None if it is unknown."""
    place = f"{here}.{key}".lstrip(".")
    if place in RENAMED:
        return f"it is called {RENAMED[place]} now"
    if key in SAID:
        return SAID[key]
    ours = KEYS.get(key)
    if ours is None or ours == place:
        return None
    return f"it is called {ours} here"


def choice_hint(group: str, name: str) -> str | None:
    """How a choice of an earlier version is spelt now; None if there was none of that name."""
    now = RENAMED.get(f"{group}={name}")
    return f"it is {now} now" if now else None


def value_hint(key: str, value: str) -> str | None:
    """What to write for another program's value of one of our keys; None if it is unknown."""
    if key == "trainer.precision" and value in ("16-mixed", "16-true", "16", "fp16", "float16", "half"):
        return _HALF
    ours = _VALUES.get(key, {}).get(value)
    return f"it is called '{ours}' here" if ours else None
