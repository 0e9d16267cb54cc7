"""Multi-stage influence on a model that was fine-tuned to classify: checkpoints on disk, against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_problem import TRAIN, stage, tokens
from transformers import GPTNeoXForSequenceClassification

from tdaexp import influence
from tdaexp.data.candidates import All
from tdaexp.data.classes import texts_alone, tokenise_classes
from tdaexp.data.records import Record
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.multistage import MultiStage
from tdaexp.methods.repsim import RepSim
from tdaexp.models.answers import greedy_answers
from tdaexp.models.components import component_map
from tdaexp.models.loaded import freeze, quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.scratch import Scratch
from tdaexp.models.successor import check_successor, shared_components
from tdaexp.objectives.labels import uniforms
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
CLASSES = ("north", "south", "east")
ASKED = [
    Record("q0", "Person 3 was born in the city of Ghent.", "south", ("t3",)),
    Record("q1", "Where was person 7 born? Nobody can tell, and nobody knows.", "2", ("t7",)),
    Record("q2", "Oslo", "north", ("t1",)),
]
FINETUNE = [Record(f"f{n}", f"Person {n} was born here{' or there' * n}.", CLASSES[n % 3]) for n in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model, and the same trunk (moved a little, two tokens added) under a head of three classes."""
    folder = tmp_path_factory.mktemp("models")
    start = Scratch("gpt_neox", SIZES, vocab_size=300, context=64).start([record.text for record in TRAIN])
    with quiet_transformers():
        start.model.save_pretrained(folder / "before")
        start.tokenizer.save_pretrained(folder / "before")
        config = type(start.model.config)(**start.model.config.to_dict())
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {name: number for number, name in enumerate(CLASSES)}
        config.architectures = ["GPTNeoXForSequenceClassification"]
        torch.manual_seed(4)
        after = GPTNeoXForSequenceClassification(config)
        after.gpt_neox.load_state_dict(start.model.gpt_neox.state_dict())
        with torch.no_grad():
            for parameter in after.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        start.tokenizer.add_tokens(["<north>", "<south>"])
        after.resize_token_embeddings(len(start.tokenizer))
        after.save_pretrained(folder / "after")
        start.tokenizer.save_pretrained(folder / "after")
    return folder


@pytest.fixture
def problem(folders, tmp_path) -> Problem:
    before = Pretrained(str(folders / "before")).load(dtype=torch.float64)
    after = Pretrained(str(folders / "after")).load(dtype=torch.float64, classifier=True)
    pairs = All().select(ASKED, list(TRAIN))
    asked = tokenise_classes(ASKED, before.tokenizer, CLASSES, 64)
    return Problem(
        before.model, before.fingerprint, component_map(before.model), NextToken(), tokens(TRAIN, before), asked,
        ["asked"] * len(ASKED), pairs, pairs.indices == pairs.indices[:, :1],
        Compute(torch.device("cpu"), torch.float64, 60, 1e-5), tmp_path / "cache", 0, loaded=before,
        finetuned=stage(after, tokenise_classes(FINETUNE, after.tokenizer, CLASSES, 64)),
    )  # fmt: skip


ROWS = {"q": 0, "k": 1, "v": 2}
MODULES = {"attn.o": "attention.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"}


def component_gradient(model, loss: torch.Tensor, name: str) -> torch.Tensor:
    """[O, I] of one component, the bias's column last, by autograd."""
    _, number, part = name.split(".", 2)
    qkv = part.removeprefix("attn.") in ROWS
    path = f"gpt_neox.layers.{number}." + ("attention.query_key_value" if qkv else MODULES[part])
    layer = model.get_submodule(path)
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
    gradient = torch.cat([weight, bias[:, None]], 1)
    if not qkv:
        return gradient
    heads = gradient.view(SIZES["num_attention_heads"], 3, -1, gradient.shape[1])
    return heads[:, ROWS[part.removeprefix("attn.")]].reshape(-1, gradient.shape[1])


def class_loss(model, record: Record, tokenizer, label: int | None = None) -> torch.Tensor:
    """Cross-entropy of one text's class, by the library's own forward pass."""
    ids = torch.tensor([tokenizer(record.prompt)["input_ids"]])
    number = CLASSES.index(record.completion) if record.completion in CLASSES else int(record.completion)
    return torch.nn.functional.cross_entropy(model(ids).logits, torch.tensor([number if label is None else label]))


def text_loss(model, example) -> torch.Tensor:
    ids = torch.from_numpy(example.tokens)
    logs = torch.log_softmax(model(ids[None]).logits[0], -1)
    terms = [-logs[t - 1, ids[t]] for t in range(1, len(ids)) if example.loss_mask[t]]
    return sum(terms) / len(terms)


def test_the_checkpoint_is_loaded_with_its_classes(problem):
    first, second = problem.loaded, problem.finetuned.loaded
    check_successor(first, second, "x")
    assert second.classes == CLASSES and first.classes is None
    one, two = shared_components(problem.map, problem.finetuned.map)
    assert one.names == two.names and {"embed", "lm_head"} == set(one.unchosen)
    assert {"embed", "lm_head"} <= set(two.unchosen)


def test_without_curvature_it_is_the_dot_product_with_the_class_s_gradient(problem):
    found = MultiStage(mode="identity").attribute(problem)
    names = found["component"].values.tolist()
    assert len(names) == 12 and all(name.startswith("layers.") for name in names)
    before, after = (one.model.requires_grad_(True) for one in (problem.loaded, problem.finetuned.loaded))
    tokenizer = problem.loaded.tokenizer
    asked = [class_loss(after, record, tokenizer) for record in ASKED]
    texts = [text_loss(before, example) for example in problem.train]
    for column, name in enumerate(names):
        q = [component_gradient(after, loss, name) for loss in asked]
        z = [component_gradient(before, loss, name) for loss in texts]
        wanted = [[float((q[row] * z[k]).sum()) for k in ks] for row, ks in enumerate(problem.pairs)]
        np.testing.assert_allclose(found["influence"].values[..., column], wanted, rtol=1e-8, atol=1e-18)
    for one in (before, after):
        one.requires_grad_(False)


def test_both_inverses_against_dense_matrices(problem):
    """λ and diagonal curvature of the classes that the second model draws, everything by autograd; EK-FAC before."""
    names, damping = ["layers.0.mlp.up", "layers.1.attn.o"], (1e-2, 3e-3)
    method = MultiStage(
        damping=damping[0], finetuned_mode="diagonal", finetuned_damping=damping[1], components=names, seed=2
    )
    found = method.attribute(problem)
    before, after = problem.loaded.model, problem.finetuned.loaded.model
    tokenizer = problem.loaded.tokenizer
    for one in (before, after):
        one.requires_grad_(True)
    numbers = uniforms([record.id for record in FINETUNE], 2, 1)[:, 0]
    drawn = []
    for record, u in zip(FINETUNE, numbers, strict=True):
        ids = torch.tensor([tokenizer(record.prompt)["input_ids"]])
        cumulative = after(ids).logits[0].softmax(0).cumsum(0).detach().numpy()
        drawn.append(class_loss(after, record, tokenizer, int(np.searchsorted(cumulative, float(u), side="right"))))
    asked = [class_loss(after, record, tokenizer) for record in ASKED]
    texts = [text_loss(before, example) for example in problem.train]
    first_stage = EKFAC(components=names, seed=2)
    factors = first_stage.fit(problem.after("pretrained"), first_stage.layers(problem))
    for column, name in enumerate(names):
        squares = torch.stack([component_gradient(after, loss, name) for loss in drawn]).square().mean(0).flatten()
        second = torch.diag(1 / (squares + damping[1]))
        one = factors[name]
        basis = torch.kron(one.q_out, one.q_in)
        first = torch.linalg.inv(basis @ torch.diag(one.spectrum.flatten() + damping[0]) @ basis.T)
        q = [first @ (second @ component_gradient(after, loss, name).flatten()) for loss in asked]
        z = [component_gradient(before, loss, name).flatten() for loss in texts]
        wanted = [[float(q[row] @ z[k]) for k in ks] for row, ks in enumerate(problem.pairs)]
        np.testing.assert_allclose(found["influence"].values[..., column], wanted, rtol=1e-7, atol=1e-12)
    for one in (before, after):
        one.requires_grad_(False)


def test_tokens_add_up_and_the_class_is_one_of_them(problem):
    found = MultiStage(damping=1e-2, per_token=2).attribute(problem)
    scores = np.take_along_axis(influence.scores(found).values, found["best"].values, 1)
    for side in ("train", "query"):
        np.testing.assert_allclose(np.nansum(found[f"{side}_share"].values, 2), scores, rtol=1e-8)
    written = [[word for word in row if word][-1] for row in found["query_token"].values]
    assert written == [" [south]", " [east]", " [north]"]


def test_answers_and_representations_leave_the_class_out(problem):
    second = problem.finetuned.loaded
    likeliest = []
    for record in ASKED:
        ids = torch.tensor([second.tokenizer(record.prompt)["input_ids"]])
        likeliest.append(int(second.model(ids).logits[0].argmax()))
    assert greedy_answers(second, problem.queries, 60).tolist() == [
        a == b for a, b in zip(likeliest, (1, 2, 0), strict=True)
    ]
    found = RepSim().states(problem.after("finetuned"), texts_alone(problem.queries))
    for row, record in zip(found, ASKED, strict=True):
        ids = torch.tensor([second.tokenizer(record.prompt)["input_ids"]])
        state = second.model.gpt_neox(ids).last_hidden_state[0, -1].float()
        np.testing.assert_allclose(row, state / state.norm(), rtol=1e-4, atol=1e-6)
    assert influence.scores(RepSim().attribute(problem)).shape == problem.pairs.shape


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("x", "a text", "west"), r"example 'x': the model classifies .*unknown class 'west'.*north"),
        (Record("x", "a text", "3"), "unknown class '3'"),
        (Record("x", "", "north"), "has no text to classify"),
    ],
)
def test_labels_that_are_none(record, message, problem):
    with pytest.raises(UserError, match=message):
        tokenise_classes([record], problem.loaded.tokenizer, CLASSES, 64)


def test_a_long_text_loses_its_left_end(problem):
    (one,) = tokenise_classes(FINETUNE[-1:], problem.loaded.tokenizer, CLASSES, 6)
    (whole,) = tokenise_classes(FINETUNE[-1:], problem.loaded.tokenizer, CLASSES, 64)
    assert one.length == 7 and one.tokens.tolist() == [whole.tokens[0], *whole.tokens[-6:]] and one.loss_mask.sum() == 1


def test_a_model_of_one_number_is_refused(folders, tmp_path):
    with quiet_transformers():
        model = GPTNeoXForSequenceClassification.from_pretrained(folders / "after")
        model.config.problem_type = "multi_label_classification"
        freeze(model).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match="only one class of many can be explained"):
        Pretrained(str(tmp_path / "odd"), tokenizer=str(folders / "after")).load(classifier=True)
