"""Fine-tuning the ranker: arguments, trainer, and whole runs."""
