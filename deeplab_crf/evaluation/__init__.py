"""Evaluation of networks, scores and label maps against labels."""
