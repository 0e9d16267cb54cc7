"""Whole commands beside bergson's on the same work: an index of a corpus, and EK-FAC from a folder to scores.

    bash benchmarks/peers/environment.sh      # once: the peers' own environment
    python benchmarks/whole.py [--rounds 3]

GPT-NeoX of 5.3 million parameters (4 layers, hidden 256, vocabulary 4,096), 500 documents of 28,000 tokens, the linear
layers of its blocks; float32, one thread. Each command is a process of its own, both programs in turn; CPU seconds
(user and system, imports and all) and peak memory are the process's, and the least of the rounds counts. The index has
16 × 16 numbers for each matrix; EK-FAC's scores are of 10 queries with all documents. `imports` is a process that only
imports what the command needs, which is what is left to others' libraries; `passes` one that loads model and documents
with transformers and takes one forward and one backward pass over each without weight gradients: the floor of both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tdaexp.models.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers" / ".venv" / "bin" / "python"
DOCUMENTS, TOKENS, QUERIES, VOCABULARY, SIDE = 500, 28_000, 10, 4096, 16
QUIET = ["trust=false", "logger=none", "metric.plots=false"]
BERGSON = """
import sys
from pathlib import Path
from bergson.config.config import *
root = Path(sys.argv[2])
def index(name, place, **how):
    return IndexConfig(run_path=str(root / place), model=str(root / "model"), data=DataConfig(dataset=str(root / name)),
        loss_reduction="mean", token_batch_size=4096, **how)
if __name__ == "__main__":
    if sys.argv[1] == "index":
        from bergson.build import build
        build(index("train", "out/index", projection_dim=16), PreprocessConfig())
    elif sys.argv[1] == "ekfac":
        from bergson.hessians.pipeline import hessian_pipeline
        hessian_pipeline(index("train", "out/run"), HessianConfig(method="kfac", ev_correction=True), ScoreConfig(),
            PreprocessConfig(), HessianPipelineConfig(query=QuerySetConfig(dataset=str(root / "queries")),
            inversion_cfg=InversionConfig(damping_factor=0.1)))
    else:
        import bergson.build, bergson.hessians.pipeline, transformers.models.gpt_neox.modeling_gpt_neox
"""
FLOOR = """
import json, sys, torch, transformers
from pathlib import Path
root = Path(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(root / "model").eval().requires_grad_(False)
tokenizer = transformers.AutoTokenizer.from_pretrained(root / "model")
rows = [json.loads(line)["text"] for line in (root / "train.jsonl").read_text().splitlines()]
rows = sorted(tokenizer(rows)["input_ids"], key=len)
while rows:
    longest, count = len(rows[-1]), max(1, 4096 // len(rows[-1]))
    rows, batch = rows[:-count], rows[-count:]
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
    keep = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
    embedded = model.get_input_embeddings()(tokens).requires_grad_()
    logits = model(inputs_embeds=embedded, attention_mask=keep).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    (loss * keep[:, 1:]).sum().backward()
"""
IMPORTS = "import tdaexp.app.stages.commands, transformers.models.gpt_neox.modeling_gpt_neox"


def fixture(root: Path) -> None:
    """The model, and the same documents for both programs."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(VOCABULARY - 8)]
    tokenizer = train_tokenizer([" ".join(words)], VOCABULARY)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=4096, tie_word_embeddings=False, attention_dropout=0.0, hidden_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    a_word = len(tokenizer(" ".join(words))["input_ids"]) / len(words)
    mean = TOKENS / DOCUMENTS / a_word
    for name, count in (("train", DOCUMENTS), ("queries", QUERIES)):
        lengths = rng.integers(round(mean / 2), round(mean * 3 / 2) + 1, count)
        texts = [" ".join(rng.choice(words, length)) for length in lengths]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        read = [tokenizer(text)["input_ids"] for text in texts]
        Dataset.from_dict({"input_ids": read, "labels": read}).save_to_disk(str(root / name))
        print(f"{name}: {count} documents, {sum(map(len, read)):,} tokens")


def commands(root: Path) -> dict[str, dict[str, list[str]]]:
    """What each program is asked, by the kind of work."""
    common = ["model=hub", f"model.pretrained={root / 'model'}", "dataset=text", f"dataset.path={root / 'train.jsonl'}",
              "dataset.template=plain", "dataset.append_eos=false", "method.part=blocks", *QUIET,
              f"cache_dir={root / 'out' / 'cache'}", f"hydra.run.dir={root / 'out' / 'run'}"]  # fmt: skip
    ours = [sys.executable, str(ROOT / "attribute.py"), *common]
    script = root / "with_bergson.py"
    script.write_text(BERGSON)
    theirs = [str(PEERS), "-W", "ignore", str(script)]
    index = ["method=project", f"method.side={SIDE}", "candidates=best", "dataset.query_sets=[]", "shard=1/1"]
    ekfac = ["method=ekfac", "candidates=all", f"dataset.query_path={root / 'queries.jsonl'}"]
    floor = [sys.executable, "-W", "ignore", "-c", FLOOR, str(root)]
    return {
        "passes": {"bergson": floor, "tdaexp": floor},
        "imports": {"bergson": [*theirs, "imports", str(root)], "tdaexp": [sys.executable, "-c", IMPORTS]},
        "index": {"bergson": [*theirs, "index", str(root)], "tdaexp": [*ours, *index]},
        "EK-FAC": {"bergson": [*theirs, "ekfac", str(root)], "tdaexp": [*ours, *ekfac]},
    }


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in GB of a process that must end well; everything that it left goes."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(folder / "said.txt", "w") as said:
        actions = [(os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        process = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: failed\n{(folder / 'said.txt').read_text()[-3000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def main() -> None:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="passes, imports, index or EK-FAC")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        fixture(root)
        print("| what | bergson: CPU seconds | this program | ratio | peak GB: bergson | this program |")
        print("|---|---|---|---|---|---|")
        for what, programs in commands(root).items():
            if told.only and what not in told.only:
                continue
            found = {name: [] for name in programs}
            for _ in range(told.rounds):
                for name, command in programs.items():
                    found[name].append(measured(command, root))
            (a, m), (b, n) = (tuple(map(min, zip(*found[name], strict=True))) for name in ("bergson", "tdaexp"))
            print(f"| {what} | {a:.1f} | {b:.1f} | {b / a:.2f} | {m:.2f} | {n:.2f} |", flush=True)


if __name__ == "__main__":
    main()
