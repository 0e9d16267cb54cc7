"""Curvature of the training loss: products with it, factors of it, and its damped inverse.

EK-FAC in four calls (each in a module of its own):

    layers  = layers_of(components)                    # layers.py: weight matrices; a fused one has several components
    factors = fit_factors(model, layers, examples, FactorSettings(), store=folder, tokens_per_batch=…)      # fit.py
    P       = factors.precondition(layer_name, gradients, Damping(value=…))    # factors_store.py; gradients [n, O, I]
    scores  = pair_scores(train, queries, pairs, precondition, store=folder)   # score.py; sides.py: Side(model, …)

Gradients of a layer have the bias as their last column, and rows ordered by component (`Layer.members`). The inverse is
symmetric, so every preconditioner of a score, of whichever side and stage, is applied to the query's gradient: for two
stages pass the pre-trained side, the fine-tuned side (layers matched by name), and
`lambda name, g: pt.precondition(name, ft.precondition(name, g, ft_damping), pt_damping)`.

`fit_source` fits any `Source`; `modules.py` has one for classifiers and regressors of linear and convolutional layers.
"""
