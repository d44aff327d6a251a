"""Vision-token reducers. Nothing is built in yet: the kind has its hook and its protocol."""
