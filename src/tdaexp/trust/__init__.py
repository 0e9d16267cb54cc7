"""Can an answer be trusted? Small checks of the run that gave it, each with its verdict."""
