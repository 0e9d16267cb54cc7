"""Dashboards in wandb: a sweep's runs as one workspace, a table of methods as a report."""
