"""Schemas as llguidance's Lark grammars, whose terminals know intersection and complement."""
