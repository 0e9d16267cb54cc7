"""Looking on while somebody else's loop trains a model: what is kept, recorded or measured on the way."""
