"""ExPLAIND's mathematics: update algebra of optimisers, quadrature, decompositions. Tensors in, tensors out."""
