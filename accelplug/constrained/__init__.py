"""Grammar engines and constrained decoding: three engines behind one protocol, a router over them, and what they cannot do rewritten."""
