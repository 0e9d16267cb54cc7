"""Studies that go beyond judging stores: they retrain, prune or compare models, and end in a page of findings."""
