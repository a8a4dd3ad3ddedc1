"""Measurements against the packages that people use today. See README.md in this folder."""
