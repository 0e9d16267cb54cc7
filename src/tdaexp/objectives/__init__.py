"""What a model is asked of an example: the next tokens, a class, numbers, or a loss of somebody's own."""
