"""Search for the CRF's parameters."""
