import base64
import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from tdaexp import influence
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.dashboards.swept import with_held_out
from tdaexp.report.loggers import RunLogger
from tdaexp.report.report import write_report
from tdaexp.report.shown import shown_queries

FIGURES = ["accuracies", "accuracy_curve", "by_depth", "by_size", "components", "fidelity_curve"]
LOADING = {
    ("img", "src"),
    ("script", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Collects what a page would load, its text, its images, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.images, self.ids, self.links, self.open, self.words = [], [], set(), [], [], []
        self.missed = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.loads += [value for name, value in attrs if (tag, name) in LOADING]
        if tag == "img":
            self.images.append(named)
        if tag == "a":
            self.links.append(named["href"])
        if named.get("class") == "query":
            self.missed.append(named["data-missed"])
        self.ids.add(named.get("id"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class Recorder(RunLogger):
    def __init__(self):
        self.metrics, self.images, self.tables = {}, {}, {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_images(self, images):
        self.images |= images

    def log_table(self, name, table):
        self.tables[name] = table


@pytest.fixture(scope="module")
def written(tmp_path_factory, stores, texts, quick):
    folder, logger = tmp_path_factory.mktemp("report"), Recorder()
    metrics = write_report(folder, stores, texts, quick, logger)
    return folder, metrics, logger, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_files_are_complete(written):
    folder, metrics, _, _ = written
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert sorted(path.stem for path in (folder / "plots").glob("*.png")) == FIGURES
    assert sorted(path.stem for path in (folder / "plots").glob("*.svg")) == FIGURES
    assert not list(folder.rglob("*.part"))
    table = pd.read_csv(folder / "table.csv")
    assert set(table["method"]) == {"select", "project", "full", "BM25", "random (expected)"}
    components = pd.read_csv(folder / "components.csv")
    assert components["component"].tolist()[:2] == ["embed", "layers.0.attn.q"]
    assert components["paraphrased"].between(0, 1).all()


def test_metrics_carry_the_stores_label(written):
    _, metrics, _, _ = written
    assert metrics["full/generated/accuracy"] == metrics["full/generated/full_accuracy"]
    assert "select/paraphrased/heldout_accuracy" in metrics
    assert "project/paraphrased/greedy_peak_accuracy" not in metrics


def test_page_loads_nothing_from_elsewhere(written):
    folder, _, _, page = written
    assert page.open == []
    assert len(page.images) == len(FIGURES)
    assert all(source.startswith("data:") for source in page.loads)
    css = (folder / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_figures_on_the_page_are_the_files(written):
    folder, _, _, page = written
    shown = [base64.b64decode(image["src"].split(",")[1]) for image in page.images]
    assert sorted(shown) == sorted((folder / "plots" / f"{name}.svg").read_bytes() for name in FIGURES)
    assert all(image["alt"] for image in page.images)


def test_navigation_leads_somewhere(written):
    _, _, _, page = written
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= page.ids


def test_page_says_what_was_found_and_where_from(written):
    _, _, _, page = written
    for words in ("paraphrased", "generated", "BM25", "random (expected)", "Guessing gives 0.333", "abc123"):
        assert words in page.text
    assert "torch 2.13" in page.text
    assert "traker" not in page.text
    assert "2.17 min" not in page.text
    assert "2.2 min" in page.text  # 130 s of gradients


def test_texts_stand_next_to_their_query_and_stay_text(written):
    folder, _, _, page = written
    assert "question zero as the model put it" in page.text
    assert "question number 0" in page.text  # the other set's q0
    assert "<script src='http://example.org/x.js'>" in page.text
    assert page.ids.isdisjoint({"x"})
    assert (folder / "report.html").read_text().count("<script") == 2  # the page's own


def test_queries_stand_in_the_order_of_the_data(written, stores):
    folder, metrics, _, page = written
    shown = re.findall(r"</span> <b>(.*?)</b>", (folder / "report.html").read_text(encoding="utf-8"))
    first = next(iter(stores.values()))
    wanted = [first["query"].values[first["query_set"].values == name] for name in ("paraphrased", "generated")]
    assert [html.unescape(one) for one in shown] == [*wanted[0], *wanted[1]]
    assert len(page.missed) == 20
    for part, name in ((page.missed[:10], "paraphrased"), (page.missed[10:], "generated")):
        assert part.count("no") / 10 == pytest.approx(metrics[f"select/{name}/accuracy"])


def test_everything_is_mirrored(written, stores):
    _, metrics, logger, _ = written
    assert logger.metrics == with_held_out(metrics) and logger.metrics.items() > metrics.items()
    assert sorted(logger.images) == FIGURES
    assert all(path.exists() for path in logger.images.values())
    top = logger.tables["compared_texts"]
    of_side = top.groupby(["method", "query_set", "query", "side"])["score"]
    assert of_side.apply(lambda s: s.abs().is_monotonic_decreasing and s.size <= 2).all()
    assert set(top["method"]) == set(stores)
    assert "compared_methods" in logger.tables


@pytest.mark.long
def test_a_report_is_the_same_twice(tmp_path, stores, texts, quick, written):
    write_report(tmp_path, stores, texts, quick)
    for path in sorted(tmp_path.rglob("*.*")):
        assert path.read_bytes() == (written[0] / path.relative_to(tmp_path)).read_bytes(), path.name


def test_one_store_without_texts_products_or_figures(tmp_path, stores):
    plain = stores["full"].drop_vars(["influence", "query_sq", "train_sq"]).drop_dims("component")
    plain = plain.assign(influence=stores["full"]["bm25"])
    plain.attrs = {"method": "repsim", "label": "repsim", "normalise": "none"}
    metrics = write_report(tmp_path, {"repsim": plain}, None, MetricSettings(bootstrap=50, plots=False))
    page = Page((tmp_path / "report.html").read_text())
    assert "paraphrased/accuracy" in metrics
    assert page.images == []
    assert not (tmp_path / "plots").exists()
    assert not (tmp_path / "components.csv").exists()
    assert {link.removeprefix("#") for link in page.links} == {"table", "provenance"}


def test_without_truth_the_page_says_so(tmp_path, full_store, quick):
    blind = full_store.assign(truth=full_store["truth"] & False)
    metrics = write_report(tmp_path, {"full": blind}, None, quick)
    assert not [name for name in metrics if "accuracy" in name]
    assert "no query's source is known" in Page((tmp_path / "report.html").read_text()).text
    assert '<div class="finding plain">' in (tmp_path / "report.html").read_text()  # nothing that is open


def test_texts_stay_at_home_where_a_mirror_takes_none(tmp_path, stores, texts, quick):
    logger = Recorder()
    logger.texts = False
    write_report(tmp_path, {"full": stores["full"]}, texts, quick, logger)
    top = logger.tables["top_texts"]
    assert len(top) and "text" not in top
    said = {one.completion for side in texts.values() for one in side.values()}
    assert not said & set(top.astype(str).to_numpy().ravel())


def test_the_page_begins_with_the_first_question_open_and_shows_no_verdict_without_truth(
    tmp_path, stores, texts, quick
):
    blind = stores["full"].assign(truth_known=("query", np.zeros(20, bool)))
    write_report(tmp_path, {"full": blind}, texts, quick)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        text.index('<section id="queries">') < text.index('<div class="findings">') < text.index('<section id="table">')
    )
    assert re.findall(r'<details class="query"[^>]*?( open)?>', text) == [" open"] + [""] * 19
    assert 'class="badge' not in text and "✓" not in text
    asked = re.search(r'<div class="prompt">(.*?)</div><div class="completion">(.*?)</div>', text)
    assert asked.groups() == ("question number 0", "as it was put")


def test_a_row_is_shown_with_each_methods_rank_and_score(stores, texts):
    first, other = stores["full"], stores["project"]
    for query in shown_queries({"full": first, "project": other}, texts, 2)["paraphrased"]:
        scores = {
            label: influence.dense(store.isel(query=slice(10))).to_pandas().loc[query.id].dropna()
            for label, store in (("full", first), ("project", other))
        }
        shown = [row for side in query.sides.values() for row in side]
        assert {row.id for row in shown} == set(scores["full"].index)  # three candidates
        for side, rows in query.sides.items():
            for row in rows:
                for (rank, score), values in zip(row.places, scores.values(), strict=True):
                    assert score == f"{values[row.id]:+#.3g}"
                    assert int(rank) == values.rank(ascending=side == "harmful")[row.id]


@pytest.mark.parametrize(("sign", "words"), [(1, "more likely; those at or below 0 harmed"),
                                             (-1, "less likely; those at or above 0 helped")])  # fmt: skip
def test_rows_of_the_other_sign_are_said(tmp_path, sign, words):
    scores = sign * np.array([[1.0, *range(-11, 0)]])
    store = influence.build(
        scores,
        query=["q"],
        query_set=["asked"],
        train=np.array([[f"t{k}" for k in range(12)]], dtype=object),
        truth=np.zeros((1, 12), bool),
        truth_known=np.zeros(1, bool),
        attrs={"method": "dot", "label": "dot"},
    )
    write_report(tmp_path, {"dot": store}, {"query": {}, "train": {}}, MetricSettings(plots=False), RunLogger())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("Fewer rows than are listed made this answer") == 1
    assert f"Fewer rows than are listed made this answer {words} least." in page
