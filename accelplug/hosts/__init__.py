"""The engines. Each host package is the only importer of its engine; neither knows a technique."""
