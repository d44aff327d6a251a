"""The engines behind one protocol: llguidance, xgrammar and outlines-core, each optional."""
