"""Data before and after tokenisation: records, query sets, loaders, generators, candidates."""
