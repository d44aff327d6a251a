"""JSON Schema taken apart: every schema, also a negated one, becomes alternatives of facts about one type of value."""
