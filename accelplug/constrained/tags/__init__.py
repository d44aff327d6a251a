"""Structural tags of xgrammar: which JSON Schemas stand in them, and the final check of what its mask leaves open in those."""
