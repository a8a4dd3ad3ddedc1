"""Training, evaluation and what they need: metrics, checkpoints. Sees models, crf and data."""
