"""Images in, tables of masks out: sources, the generator, the ledger, and the cluster that runs them."""
