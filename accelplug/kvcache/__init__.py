"""KV-cache compressors. Nothing is built in yet: the kind has its hook and its protocol."""
