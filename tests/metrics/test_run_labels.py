"""What stores are called: by the choices and keys that their runs differ in, never by a class."""

from tdaexp.metrics.labels import asked, differing, distinct_labels, told_apart


def test_labels_tell_what_differs(products_dataset):
    def of(**config):
        return products_dataset.assign_attrs(label="full", config=config)

    found = [of(seed=0, metric={"folds": 5}), of(seed=1, metric={"folds": 4}), of(seed=1, metric={"folds": 5})]
    assert distinct_labels(found) == ["full [seed=0]", "full [seed=1]", "full [seed=1] (3)"]
    assert distinct_labels([of(seed=0), of(seed=0)]) == ["full", "full (2)"]
    assert distinct_labels([of(rank=None), of(rank=8)]) == ["full [rank=null]", "full [rank=8]"]
    assert distinct_labels([of(seed=0), products_dataset.assign_attrs(label="dot")]) == ["full", "dot"]


def test_labels_name_as_many_keys_as_it_takes(products_dataset):
    usual = {"measurement": "log_likelihood", "query_rank": None, "reduction": "mean", "relative_damping": 0.1}
    others = [{"measurement": "logit_margin"}, {"query_rank": 8}, {"reduction": "sum"}, {"relative_damping": 1.0}]
    stores = [products_dataset.assign_attrs(label="ekfac", config={"method": usual | one}) for one in ({}, *others)]
    labels = distinct_labels(stores)
    assert len(set(labels)) == 5 and not any("(" in label for label in labels)
    assert "relative_damping=1.0" in labels[4]


MODEL = {"_target_": "tdaexp.models.scratch.Scratch", "name": "toy_gpt", "config": {"hidden_size": 16}}
OTHER = {"_target_": "tdaexp.models.hub.Hub", "name": "toy_neox", "config": {"hidden_size": 32}}


def run(store, method="ekfac", model="toy_gpt", label="ekfac", **config):
    values = {"model": MODEL if model == "toy_gpt" else OTHER, "method": {"_target_": "tdaexp.methods.ekfac.EKFAC"}}
    values["method"] |= config.pop("keys", {})
    return store.assign_attrs(label=label, config=values | config, choices={"method": method, "model": model})


def test_choices_of_groups_speak_for_the_keys_below_them(products_dataset):
    found = [run(products_dataset), run(products_dataset, model="toy_neox"), run(products_dataset, "ekfac_mlp")]
    assert distinct_labels(found) == [
        "ekfac [method=ekfac, model=toy_gpt]",
        "ekfac [method=ekfac, model=toy_neox]",
        "ekfac [method=ekfac_mlp, model=toy_gpt]",
    ]
    assert distinct_labels(found[:2]) == ["ekfac [model=toy_gpt]", "ekfac [model=toy_neox]"]


def test_keys_stand_behind_choices_only_where_these_do_not_tell_runs_apart(products_dataset):
    keys = [{"damping": 0.1}, {"damping": 1.0}]
    found = [run(products_dataset, keys=one) for one in keys] + [run(products_dataset, "ekfac_mlp", keys=keys[0])]
    assert distinct_labels(found) == [
        "ekfac [method=ekfac, method.damping=0.1]",
        "ekfac [method=ekfac, method.damping=1.0]",
        "ekfac [method=ekfac_mlp, method.damping=0.1]",
    ]


def test_a_class_is_never_in_a_label_as_such(products_dataset):
    """Stores of earlier versions know no choices: then the last word of a class stands for its group."""
    found = [run(products_dataset), run(products_dataset, model="toy_neox")]
    for one in found:
        del one.attrs["choices"]
    assert distinct_labels(found) == ["ekfac [model=scratch]", "ekfac [model=hub]"]
    assert asked(found[0])["method"] == "ekfac" and not any("_target_" in key for key in asked(found[0]))


def test_keys_that_only_follow_another_one_tell_nothing():
    runs = [{"seed": k, "method.seed": k, "dataset.seed": 0} for k in range(2)]
    assert differing(runs) == ["seed"]
    assert differing([*runs, {"seed": 2, "method.seed": 0, "dataset.seed": 0}]) == ["method.seed", "seed"]
    assert told_apart(["a", "a", "b"], [*runs, {}]) == ["a [seed=0]", "a [seed=1]", "b"]
