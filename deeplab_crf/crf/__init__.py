"""Dense CRFs as torch modules and functions: the layer, losses, filters, diagnosis. Needs torch."""
