"""Attaches optimizers to models: modes, saving, loading, copies and BatchNorm."""
