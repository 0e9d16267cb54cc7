"""A classification task is trained, recorded and decomposed by one command."""

from __future__ import annotations

from commands import metrics, only

from tdaexp import influence

TASK = ["model=mnist_cnn", "dataset=digits", "model.padding=1", "model.channels=[2,3]", "model.hidden=8",
        "model.activation=gelu", "dataset.train=300", "dataset.test=20", "trainer.fit.batch_size=64",
        "trainer.fit.steps=6"]  # fmt: skip


def test_the_sums_reproduce_the_model(commands):
    commands.done(
        "attribute", *TASK, "method=explaind", "method.keep=[query,train,output]", "method.quadrature.nodes=8"
    )
    folder = only("outputs/attribute/*")
    found = metrics(folder)
    assert found["explaind/agreement"] == 1 and 0 <= found["explaind/kl"] < 1e-3 and found["explaind/nodes"] == 8
    assert found["trust/coverage"] == 1 and found["trust/self_check"] < 1e-4 and found["trust/bad"] == 0
    assert 0 <= found["trust/completeness"] < 1e-2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Can this answer be trusted?" in page and "true change" in page
    dataset = influence.load(folder / "influence.zarr")
    assert dict(dataset["influence"].sizes) == {"query": 20, "train": 300, "output": 10}
    total = dataset["influence"].sum("train") + dataset["regularisation"]
    scale = float(abs(dataset["change"]).max())
    assert float(abs(total - dataset["explained"]).max()) < 1e-4 * scale


def test_what_needs_words_is_refused_on_a_task_and_what_does_not_runs(commands):
    assert "compares words, and these examples have none" in commands.refused("attribute", *TASK, "method=bm25")
    small = ("dataset.query_limit=3", "method.dimensions=8", "metric.plots=false", "metric.bootstrap=20")
    commands.done("attribute", *TASK, "method=trak", *small)
    scores = influence.scores(influence.load(only("outputs/attribute/*trak*/influence.zarr")))
    assert scores.shape == (3, 300) and scores.notnull().all()
