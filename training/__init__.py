"""Landmark training: the recipe of the model that we ship. Knows no HTTP and no cache."""
