"""Local checkpoints through transformers: finding and identifying them, their tokenizer, the reference engine."""
