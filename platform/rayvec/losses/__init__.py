"""Losses of the recipe's stages, as functions of tensors. Knows no model and no Ray."""
