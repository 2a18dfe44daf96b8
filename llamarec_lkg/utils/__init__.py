"""Files, fingerprints, downloads, the Hub's client: what knows nothing of recommendation."""
