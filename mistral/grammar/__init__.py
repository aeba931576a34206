"""Answers of a given form: which tokens a grammar allows next."""
