"""Operators of mean-field inference."""
