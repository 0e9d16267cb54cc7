"""Models to explain: loaders and builders, their tokenizers, their named components, and what they write."""
