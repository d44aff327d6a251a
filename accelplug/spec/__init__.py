"""Speculative decoding: drafters, and the rules that verify them. One technique, one file."""
