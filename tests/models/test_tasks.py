"""Task models: the papers' sizes, complete component maps, and the forward passes against torch's own layers."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from tdaexp.data.digits import Digits
from tdaexp.data.modular_addition import ModularAddition
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.models.discovery import discovered
from tdaexp.models.grokking import Grokking
from tdaexp.models.mnist_cnn import MnistCnn
from tdaexp.models.resnet9 import ResNet9
from tdaexp.runtime.errors import UserError


def images(size=28, channels=1, classes=10, count=6):
    inputs = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 3 + 1
    examples = TensorExamples([f"i{k}" for k in range(count)], inputs, torch.zeros(count, dtype=torch.int64))
    return TensorCorpus(examples.select(range(count - 1)), examples.select([count - 1]), classes)


ADDITION = ModularAddition(train=20, test=5).load()
EXPECTED = {
    "grokking": (Grokking(), ADDITION, 97_587, "embed layers.0.attn.q layers.0.attn.k layers.0.attn.v layers.0.attn.o "
                 "layers.0.mlp.up layers.0.mlp.down lm_head"),
    "grokking_code": (Grokking(tied_heads=True), ADDITION, 97_587 - 2 * 4160, "embed layers.0.attn.qkv "
                      "layers.0.attn.o layers.0.mlp.up layers.0.mlp.down lm_head"),
    "grokking_norm": (Grokking(norm=True), ADDITION, 97_587 + 4 * 64, "embed layers.0.attn.q layers.0.attn.k "
                      "layers.0.attn.v layers.0.attn.o layers.0.mlp.up layers.0.mlp.down norms lm_head"),
    "mnist_cnn": (MnistCnn(), images(), 108_618, "conv1 conv2 fc1 fc2"),
    "mnist_cnn_timed": (MnistCnn(channels=[8, 16], hidden=64), images(), 27_562, "conv1 conv2 fc1 fc2"),
    "resnet9": (ResNet9(width=8), images(32, 3, 2), None, "conv1.conv norms conv2.conv res1.conv1.conv "
                "res1.conv2.conv conv3.conv conv4.conv res2.conv1.conv res2.conv2.conv fc"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_components_are_disjoint_and_cover_every_parameter(name):
    config, corpus, size, names = EXPECTED[name]
    module = config.build(corpus)
    components = discovered(module)
    parameters = dict(module.named_parameters())
    assert sorted(p for members in components.members(module).values() for p in members) == sorted(parameters)
    for size_of_one, members in zip(components.sizes, components.members(module).values(), strict=True):
        assert size_of_one == sum(parameters[member].numel() for member in members)
    assert set(components.names) == set(names.split())
    assert size is None or components.sizes.sum() == size
    assert module(corpus.train.inputs).shape == (len(corpus.train), corpus.classes) and not module.training


def test_the_papers_resnet9_has_its_width():
    module = ResNet9().build(images(32, 3, 2))
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 8 and [layer.out_channels for layer in convolutions][::7] == [64, 512]


@pytest.mark.parametrize("tied", [False, True])
def test_grokking_s_attention_is_torch_s(tied):
    module = Grokking(tied_heads=tied).build(ADDITION)
    own, stream = module.layers[0].attn, torch.randn(7, 4, 64)
    theirs = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    parts = [own.qkv] * 3 if tied else [own.q, own.k, own.v]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(own.o.weight)
        theirs.out_proj.bias.copy_(own.o.bias)
        torch.testing.assert_close(own(stream), theirs(stream, stream, stream)[0][:, -1])


def test_grokking_with_norms_is_torch_s_encoder_layer():
    module = Grokking(norm=True).build(ADDITION)
    own = module.layers[0]
    theirs = nn.TransformerEncoderLayer(64, 4, 512, dropout=0.0, batch_first=True).train()
    state = {
        "self_attn.in_proj_weight": torch.cat([own.attn.q.weight, own.attn.k.weight, own.attn.v.weight]),
        "self_attn.in_proj_bias": torch.cat([own.attn.q.bias, own.attn.k.bias, own.attn.v.bias]),
        "self_attn.out_proj.weight": own.attn.o.weight, "self_attn.out_proj.bias": own.attn.o.bias,
        "linear1.weight": own.mlp["up"].weight, "linear1.bias": own.mlp["up"].bias,
        "linear2.weight": own.mlp["down"].weight, "linear2.bias": own.mlp["down"].bias,
        **{f"norm1.{name}": value for name, value in own.norm1.state_dict().items()},
        **{f"norm2.{name}": value for name, value in own.norm2.state_dict().items()},
    }  # fmt: skip
    theirs.load_state_dict(state)
    tokens = ADDITION.train.inputs
    with torch.no_grad():
        expected = module.lm_head(theirs(module.embed(tokens))[:, -1])
        torch.testing.assert_close(module(tokens), expected, rtol=1e-4, atol=1e-5)


def test_the_authors_variant_by_hand(repository):
    config = Grokking(
        bias="mlp", tied_heads=True, heads_apart=True, residual_attention=False, scale_embedding=True,
        activation_after=True,
    )  # fmt: skip
    module = config.build(ADDITION)
    layer, tokens = module.layers[0], ADDITION.train.inputs
    with torch.no_grad():
        mixed = layer.attn(module.embed(tokens) * 8.0)
        inner = layer.mlp["down"](layer.mlp["up"](mixed).relu()).relu()
        torch.testing.assert_close(module(tokens), module.lm_head(mixed + inner))
    biases = [name for name, _ in module.named_parameters() if name.endswith("bias")]
    assert biases == ["layers.0.mlp.up.bias", "layers.0.mlp.down.bias"]
    changed = {key: value for key, value in vars(config).items() if vars(Grokking())[key] != value}
    with open(repository / "conf" / "model" / "grokking_code.yaml", encoding="utf-8") as stream:
        shipped = yaml.safe_load(stream)
    assert shipped == {"defaults": ["grokking"], "name": "grokking_code", **changed}


@pytest.mark.parametrize(("apart", "bound"), [(False, 1 / 8), (True, 1 / 4)])
def test_the_attention_s_output_starts_as_four_matrices_or_as_one(apart, bound):
    modules = [Grokking(heads_apart=apart, seed=seed).build(ADDITION) for seed in (0, 1)]
    drawn = torch.stack([module.layers[0].attn.o.weight.detach() for module in modules])
    assert 0.99 * bound < float(drawn.abs().max()) <= bound
    assert float(drawn.std()) == pytest.approx(bound / 3**0.5, rel=0.02)  # uniform
    theirs = nn.Linear(16 if apart else 64, 64).weight.detach()  # torch's own start
    assert float(theirs.abs().max()) == pytest.approx(bound, rel=0.02)


def test_the_sum_of_the_heads_own_outputs_is_one_matrix():
    own, stream = Grokking(heads_apart=True, bias="none").build(ADDITION).layers[0].attn, torch.randn(5, 4, 64)
    parts = own.o.weight.split(16, dim=1)  # [64, 16] of each head
    seen = []
    own.o.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        whole = own(stream)
        heads = [mixed @ part.T for mixed, part in zip(seen[0].split(16, dim=1), parts, strict=True)]
    torch.testing.assert_close(whole, sum(heads))


@pytest.mark.parametrize(("bias", "count"), [("all", 7), ("mlp", 2), ("none", 0)])
def test_which_layers_have_biases(bias, count):
    names = [name for name, _ in Grokking(bias=bias).build(ADDITION).named_parameters() if name.endswith("bias")]
    assert len(names) == count and (bias != "mlp" or all(".mlp." in name for name in names))


def test_frozen_batch_norms_standardise_the_training_images():
    corpus = images(16, 3, 2, count=9)
    module = ResNet9(width=8).build(corpus)
    seen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    module(corpus.train.inputs)
    assert len(seen) == 8
    for out in seen.values():
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(out.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(out.var((0, 2, 3), unbiased=False), torch.ones(out.shape[1]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("norm", ["frozen", "group", "none"])
def test_an_image_s_logits_do_not_depend_on_its_batch(norm):
    corpus = images(16, 3, 2, count=9)
    module = ResNet9(width=8, norm=norm).build(corpus)
    whole = module(corpus.train.inputs)
    torch.testing.assert_close(module(corpus.train.inputs[2:3]), whole[2:3], rtol=1e-4, atol=1e-5)


def test_weights_follow_the_seed_and_a_file_of_layers(tmp_path):
    torch.manual_seed(0)
    one, two, other = (Grokking(seed=seed).build(ADDITION).state_dict() for seed in (3, 3, 4))
    drawn = torch.rand(1)
    assert all(torch.equal(one[name], two[name]) for name in one) and not torch.equal(
        one["lm_head.bias"], other["lm_head.bias"]
    )
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    save_file({"lm_head.bias": torch.ones(115)}, tmp_path / "layer.safetensors")
    config = Grokking(seed=3, start=str(tmp_path / "layer.safetensors"))
    placed = config.build(ADDITION).state_dict()
    assert (placed["lm_head.bias"] == 1).all() and torch.equal(placed["embed.weight"], one["embed.weight"])
    assert config.start_fingerprint() != Grokking(seed=3).start_fingerprint() != Grokking(seed=4).start_fingerprint()
    assert Grokking(name="other").start_fingerprint() == Grokking().start_fingerprint()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lm_haed.bias": torch.ones(115)}, r"unknown parameter 'lm_haed\.bias'; did you mean 'lm_head\.bias'"),
        ({"lm_head.bias": torch.ones(7)}, r"'lm_head\.bias' has the shape \[7\], the model's is \[115\]"),
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path, tensors, message):
    file = tmp_path / "layer.safetensors"
    save_file(tensors, file)
    with pytest.raises(UserError, match=message):
        Grokking(start=str(file)).build(ADDITION)
    file.write_bytes(b"not")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Grokking(start=str(file)).build(ADDITION)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Grokking(hidden=30), r"model\.hidden=30: must be a multiple"),
        (lambda: Grokking(bias="mpl"), r"model\.bias: unknown value 'mpl'; did you mean 'mlp'"),
        (lambda: Grokking(activation="relo"), r"model\.activation: unknown activation 'relo'; did you mean 'relu'"),
        (lambda: Grokking().build(images()), r"model=grokking: needs sequences of tokens"),
        (lambda: MnistCnn().build(ADDITION), r"model=mnist_cnn: needs images"),
        (lambda: MnistCnn().build(Digits().load()), r"images of 8 x 8 are too small .* set model\.padding=1"),
        (lambda: MnistCnn(channels=[8]), r"model\.channels="),
        (lambda: MnistCnn(hidden=0), r"model\.hidden=0"),
        (lambda: ResNet9(norm="batch"), r"model\.norm: unknown value 'batch'"),
        (lambda: ResNet9(width=12, norm="group"), r"model\.width=12"),
        (lambda: ResNet9().build(images(4, 3)), r"images of 4 x 4 are too small"),
    ],
)
def test_bad_values_are_one_line(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "config"), [("grokking", Grokking), ("mnist_cnn", MnistCnn), ("resnet9", ResNet9)])
def test_shipped_configs_are_the_defaults(repository, name, config):
    values = yaml.safe_load((repository / "conf" / "model" / f"{name}.yaml").read_text())
    assert values.pop("_target_") == f"{config.__module__}.{config.__qualname__}"
    assert config(**values) == config()
