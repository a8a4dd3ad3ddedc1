"""Training of DeepLab networks. Needs torch."""
