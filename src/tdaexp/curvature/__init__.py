"""Curvature of the training loss: products with it, factors of it, and its damped inverse.

EK-FAC in five calls (each in a module of its own; `gradients.passes` has `Gradients`):

    layers  = layers_of(components)                    # layers.py: weight matrices; a fused one has several components
    samples = FisherSamples(Gradients(model, layers.map, examples, objective), layers)      # fisher.py: drawn labels
    factors = fit_factors(samples, FactorSettings(), store=folder)                          # fit.py
    P       = factors.precondition(layer_name, gradients, Damping(value=…))    # factors_store.py; gradients [n, O, I]
    scores  = pair_scores(LayerPairs(train, queries, layers, precondition), pairs, store=folder)            # score.py

Gradients of a layer have the bias as their last column, and rows ordered by component (`Layer.members`). The inverse is
symmetric, so every preconditioner of a score, of whichever side and stage, is applied to the query's gradient: for two
stages pass the pre-trained model's `Gradients`, the fine-tuned one's (layers matched by name), and
`lambda name, g: pt.precondition(name, ft.precondition(name, g, ft_damping), pt_damping)`.

The objective (`objectives`) is all that tells a language model from a classifier or a regressor.
"""
