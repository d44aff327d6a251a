"""Grammar engines and constrained decoding. Nothing is built in yet: the kind has its hook and its protocol."""
