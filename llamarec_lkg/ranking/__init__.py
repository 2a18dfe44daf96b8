"""The ranker: configuration, processor, model, adapters, checkpoints."""
